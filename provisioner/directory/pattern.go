package directory

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-storage/berth/provisioner"
)

// DefaultPattern names a volume so that an administrator recognises it and no
// two collide.
const DefaultPattern = "${pvc.namespace}-${pvc.name}-${pv.name}"

const patternField = "StorageClass parameter pathPattern"

const knownVariables = "${pvc.namespace}, ${pvc.name}, ${pv.name}, ${pvc.labels['key']}, ${pvc.annotations['key']}"

// Pattern is a parsed pathPattern: a relative path in which variables stand for
// what the claim says.
//
// A "/" of the pattern separates components; a "/" in what a variable stands
// for does not, it is escaped. The escape is that of URLs: "%" and two
// hexadecimal digits for each byte of a "/", a "%", and of any character that
// can't be printed. So two values never become one, and the pattern alone
// decides how deep a volume lies.
type Pattern struct {
	source     string
	components [][]segment
}

// segment is literal text, or a variable.
type segment struct {
	literal string
	lookup  func(Variables) (value string, ok bool)
	name    string // the variable, as written
}

// Variables are what a Pattern may use.
type Variables struct {
	Namespace   string
	Claim       string
	Volume      string
	Labels      map[string]string
	Annotations map[string]string
}

// ParsePattern reads the value of the parameter pathPattern. Its errors are
// infeasible: only a changed class helps.
func ParsePattern(source string) (*Pattern, error) {
	p := &Pattern{source: source, components: [][]segment{nil}}
	if !utf8.ValidString(source) || strings.ContainsFunc(source, unicode.IsControl) {
		return nil, p.infeasible("it holds a control character or is not valid UTF-8")
	}
	rest := source
	for rest != "" {
		start := strings.Index(rest, "${")
		if start != 0 {
			literal := rest
			if start > 0 {
				literal = rest[:start]
			}
			p.addLiteral(literal)
			rest = rest[len(literal):]
			continue
		}
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return nil, p.infeasible("the variable %s has no closing brace", shown(rest))
		}
		variable, err := p.variable(rest[:end+1])
		if err != nil {
			return nil, err
		}
		p.add(variable)
		rest = rest[end+1:]
	}
	return p, p.checkLiterals()
}

// addLiteral appends text, each "/" of which begins a new component.
func (p *Pattern) addLiteral(text string) {
	for i, part := range strings.Split(text, "/") {
		if i > 0 {
			p.components = append(p.components, nil)
		}
		if part != "" {
			p.add(segment{literal: part})
		}
	}
}

func (p *Pattern) add(s segment) {
	last := len(p.components) - 1
	p.components[last] = append(p.components[last], s)
}

// variable reads one "${…}".
func (p *Pattern) variable(text string) (segment, error) {
	name := text[len("${") : len(text)-len("}")]
	s := segment{name: text}
	switch name {
	case "pvc.namespace":
		s.lookup = func(v Variables) (string, bool) { return v.Namespace, true }
		return s, nil
	case "pvc.name":
		s.lookup = func(v Variables) (string, bool) { return v.Claim, true }
		return s, nil
	case "pv.name":
		s.lookup = func(v Variables) (string, bool) { return v.Volume, true }
		return s, nil
	}
	for prefix, values := range map[string]func(Variables) map[string]string{
		"pvc.labels['":      func(v Variables) map[string]string { return v.Labels },
		"pvc.annotations['": func(v Variables) map[string]string { return v.Annotations },
	} {
		key, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		key, ok = strings.CutSuffix(key, "']")
		if problems := validation.IsQualifiedName(key); !ok || len(problems) > 0 {
			return s, p.infeasible("%s does not name a key; known variables: %s", shown(text), knownVariables)
		}
		s.lookup = func(v Variables) (string, bool) { value, ok := values(v)[key]; return value, ok }
		return s, nil
	}
	return s, p.infeasible("unknown variable %s; known variables: %s", shown(text), knownVariables)
}

// checkLiterals refuses what is wrong whatever the variables stand for.
func (p *Pattern) checkLiterals() error {
	if p.source == "" {
		return p.infeasible("it is empty; leave the parameter out for %s", DefaultPattern)
	}
	if strings.HasPrefix(p.source, "/") {
		return p.infeasible("it must be relative, without a slash in front")
	}
	if strings.HasSuffix(p.source, "/") {
		return p.infeasible("it must not end with a slash")
	}
	for i, component := range p.components {
		literal := ""
		for _, s := range component {
			if s.lookup != nil {
				literal = "x" // anything that is fine by itself
				break
			}
			literal += s.literal
		}
		if problem := componentProblem(literal); problem != "" {
			return p.infeasible("component %d, %s, %s", i+1, shown(literal), problem)
		}
	}
	return nil
}

// CheckAdopt refuses a pattern by which the claims of two namespaces could come to
// the same directory: with the parameter existing set to adopt, whoever asks first
// would get somebody else's data. Its error is infeasible.
func (p *Pattern) CheckAdopt() error {
	for _, component := range p.components {
		if tellsNamespace(component) {
			return nil
		}
	}
	return p.infeasible("with existing: adopt, claims of two namespaces could come to the same directory; make ${pvc.namespace} a component of its own, as in restored/${pvc.namespace}/${pvc.name}")
}

// Expand returns the path that the pattern gives a volume. Its errors are
// infeasible: the claim or the class must change.
func (p *Pattern) Expand(v Variables) (string, error) {
	components := make([]string, 0, len(p.components))
	for _, segments := range p.components {
		var component strings.Builder
		for _, s := range segments {
			if s.lookup == nil {
				component.WriteString(s.literal)
				continue
			}
			value, ok := s.lookup(v)
			if !ok {
				return "", p.infeasible("the claim lacks what %s stands for; add it to the claim or change the class", s.name)
			}
			if !utf8.ValidString(value) {
				return "", p.infeasible("what %s stands for, %s, is not valid UTF-8", s.name, shown(value))
			}
			escapeTo(&component, value)
		}
		components = append(components, component.String())
	}
	path := strings.Join(components, "/")
	if err := CheckPath(path); err != nil {
		return "", p.infeasible("%v", err)
	}
	return path, nil
}

func (p *Pattern) infeasible(format string, args ...any) error {
	return provisioner.Infeasible(patternField, p.source, format, args...)
}

// escapeTo writes value as part of a component.
func escapeTo(b *strings.Builder, value string) {
	for _, r := range value {
		if r != '/' && r != '%' && unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(b, "%%%02X", c)
		}
	}
}
