package directory_test

import (
	"fmt"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

// TestPatternsThatMayAdopt: by those that may, no claims of two namespaces come to
// one directory, and by those that may not, they do.
func TestPatternsThatMayAdopt(t *testing.T) {
	for pattern, may := range map[string]bool{
		directory.DefaultPattern:                                 true, // holds the UID
		"restored/${pvc.namespace}/${pvc.name}":                  true,
		"${pvc.namespace}/${pvc.annotations['a']}":               true,
		"${pvc.annotations['a']}/${pvc.namespace}":               true,
		"${pvc.namespace}":                                       true,
		"restored-${pvc.namespace}/${pvc.name}":                  true,
		"${pvc.namespace}_${pvc.name}":                           true,
		"${pvc.namespace}.${pvc.name}":                           true,
		"${pvc.name}.${pvc.namespace}":                           true,
		"${pvc.name}_${pvc.namespace}":                           true,
		"${pvc.name}_${pvc.namespace}_${pvc.annotations['a']}":   true,
		"${pvc.annotations['a']}_${pvc.namespace}_${pvc.name}":   true, // local-path-provisioner's
		"${pvc.annotations['a']}_${pvc.namespace}_x_${pvc.name}": true,
		"x${pvc.annotations['a']}/${pvc.name}/${pv.name}":        true,

		"shared":                                false,
		"${pvc.name}":                           false,
		"restored-${pvc.namespace}-${pvc.name}": false,
		"${pvc.namespace}${pvc.name}":           false,
		"${pvc.name}-${pvc.namespace}":          false,
		"${pvc.name}${pvc.namespace}":           false,
		"${pvc.namespace}-${pvc.namespace}":     false, // nobody needs it
		"${pvc.annotations['a']}":               false,
		"${pvc.labels['a']}/${pvc.name}":        false,
		"${pvc.annotations['a']}_${pvc.namespace}_${pvc.labels['a']}": false,
		"${pvc.annotations['a']}-${pvc.namespace}-${pvc.name}":        false, // nfs-subdir-external-provisioner's, if an annotation were in it
		"${pvc.namespace}-${pvc.name}-${pvc.annotations['a']}":        false,
	} {
		p, err := directory.ParsePattern(pattern)
		must(t, err)
		err = p.CheckAdopt()
		if may != (err == nil) {
			t.Errorf("%q: CheckAdopt = %v", pattern, err)
		}
		if !may {
			wantInfeasible(t, "CheckAdopt", pattern, err, "StorageClass parameter pathPattern", "${pvc.namespace}", "restored/${pvc.namespace}/${pvc.name}")
		}
		if who := collision(t, p); may && who != "" {
			t.Errorf("%q may adopt, and %s", pattern, who)
		} else if !may && who == "" && pattern != "${pvc.namespace}-${pvc.namespace}" {
			t.Errorf("%q may not adopt, and no two namespaces come to one directory", pattern)
		}
	}
}

// collision looks for claims of two namespaces that come to one directory, among all
// with short names of the characters that matter.
func collision(t *testing.T, p *directory.Pattern) string {
	t.Helper()
	names := words([]string{"a", "x", "-", "."}, 3)
	values := []string{"a", "x", "_", "-", "a-a", "a_a", "a_x", "x_a", "a-x", "a/"}
	owner := map[string]string{}
	uid := 0
	for _, namespace := range []string{"a", "aa", "x", "a-a", "a-x", "aax", "ax"} {
		for _, claim := range names {
			for _, annotation := range values {
				for _, label := range []string{annotation, "a", "x_a"} {
					uid++
					path, err := p.Expand(directory.Variables{
						Namespace: namespace, Claim: claim, Volume: fmt.Sprintf("pvc-%08d", uid),
						Labels: map[string]string{"a": label}, Annotations: map[string]string{"a": annotation},
					})
					if err != nil {
						continue
					}
					if other, taken := owner[path]; taken && other != namespace {
						return fmt.Sprintf("%s and %s come to %s", other, namespace, path)
					}
					owner[path] = namespace
				}
			}
		}
	}
	return ""
}

// words returns all of at most so many letters.
func words(letters []string, most int) []string {
	all, longest := []string{}, []string{""}
	for range most {
		var next []string
		for _, word := range longest {
			for _, letter := range letters {
				next = append(next, word+letter)
			}
		}
		all, longest = append(all, next...), next
	}
	return all
}
