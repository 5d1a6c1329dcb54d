package request

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// Parameters reads the parameters of a StorageClass. It keeps the first error,
// so that a caller may ask for all it wants to know and look at Err once.
type Parameters struct {
	values map[string]string
	given  map[string]string
	err    error
}

// ReadParameters reads the parameters of class. Defaults says what those stand
// for that the class leaves out, and which there are: any other is an error.
// A caller that wants to tell an absent parameter from an empty one gives it an
// empty default and asks Given.
func ReadParameters(class *storagev1.StorageClass, defaults map[string]string) *Parameters {
	p := &Parameters{values: maps.Clone(defaults), given: class.Parameters}
	for _, name := range slices.Sorted(maps.Keys(class.Parameters)) {
		p.values[name] = class.Parameters[name]
		if _, known := defaults[name]; !known {
			p.Fail(name, "there is no such parameter; known are %s", strings.Join(slices.Sorted(maps.Keys(defaults)), ", "))
		}
	}
	return p
}

// Err returns the first error.
func (p *Parameters) Err() error { return p.err }

// Fail notes that the value of name is wrong, in the way that format and args
// say.
func (p *Parameters) Fail(name, format string, args ...any) {
	if p.err == nil {
		p.err = provisioner.Infeasible("StorageClass parameter "+name, p.values[name], format, args...)
	}
}

// Given reports whether the class has the parameter name.
func (p *Parameters) Given(name string) bool {
	_, given := p.given[name]
	return given
}

// Value returns the value of name.
func (p *Parameters) Value(name string) string { return p.values[name] }

// OneOf returns the value of name, which must be one of allowed.
func (p *Parameters) OneOf(name string, allowed ...string) string {
	value := p.values[name]
	if !slices.Contains(allowed, value) {
		p.Fail(name, "choose one of %s", strings.Join(allowed, ", "))
	}
	return value
}

// Number returns the value of name, a number of the given base that is not
// larger than most; fix says how to write one.
func (p *Parameters) Number(name string, base int, most uint64, fix string) uint32 {
	n, err := strconv.ParseUint(p.values[name], base, 32)
	if err != nil || n > most {
		p.Fail(name, "%s", fix)
	}
	return uint32(n)
}

// The values of the parameter existing.
const (
	existingRefuse = "refuse"
	existingAdopt  = "adopt"
)

// DirectoryDefaults returns the parameters that all drivers of directories
// have, with their defaults, and adds those in more. The owner has no default
// of its own: unless more has one, it is left to the filesystem.
func DirectoryDefaults(more map[string]string) map[string]string {
	all := map[string]string{
		"pathPattern": directory.DefaultPattern,
		"onDelete":    string(directory.OnDeleteDelete),
		"mode":        "0770",
		"uid":         "",
		"gid":         "",
		"existing":    existingRefuse,
	}
	maps.Copy(all, more)
	return all
}

// Directory is what the parameters of DirectoryDefaults ask for.
type Directory struct {
	Pattern  *directory.Pattern
	OnDelete directory.OnDelete
	// Adopt says that a directory which belongs to no volume may become one.
	Adopt bool
	// Mode holds the twelve bits that chmod(2) knows.
	Mode uint32
	// UID and GID are nil when the owner is left to the filesystem.
	UID, GID *uint32
}

// Directory reads the parameters of DirectoryDefaults.
func (p *Parameters) Directory() Directory {
	d := Directory{
		OnDelete: directory.OnDelete(p.OneOf("onDelete",
			string(directory.OnDeleteDelete), string(directory.OnDeleteArchive), string(directory.OnDeleteRetain))),
		Adopt: p.OneOf("existing", existingRefuse, existingAdopt) == existingAdopt,
		Mode:  p.Number("mode", 8, 0o7777, "write an octal mode such as 0770, at most 7777"),
		UID:   p.owner("uid"),
		GID:   p.owner("gid"),
	}
	var err error
	if d.Pattern, err = directory.ParsePattern(p.Value("pathPattern")); err != nil && p.err == nil {
		p.err = err
	}
	return d
}

// CheckAdopt refuses to adopt by a pattern that keeps namespaces not apart. Its error
// is infeasible. It is for claims: that a class is refused so makes its parameters
// no worse for what else is read from them.
func (d Directory) CheckAdopt() error {
	if !d.Adopt {
		return nil
	}
	return d.Pattern.CheckAdopt()
}

// owner reads a user's or a group's id.
func (p *Parameters) owner(name string) *uint32 {
	if p.Value(name) == "" && !p.Given(name) {
		return nil
	}
	// The highest id means "leave as it is" to chown(2).
	id := p.Number(name, 10, math.MaxUint32-1, fmt.Sprintf("write a number from 0 to %d", uint32(math.MaxUint32-1)))
	return &id
}
