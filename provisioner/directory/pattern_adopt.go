package directory

import (
	"slices"
	"strings"
)

// What the API server allows in names, beside which other characters mark their
// ends.
const (
	lowerAlphanumeric   = "abcdefghijklmnopqrstuvwxyz0123456789"
	namespaceCharacters = lowerAlphanumeric + "-"  // a DNS label
	claimCharacters     = lowerAlphanumeric + "-." // a DNS subdomain
)

// The variables that tellsNamespace knows the values of.
const (
	namespaceVariable = "${pvc.namespace}"
	claimVariable     = "${pvc.name}"
	volumeVariable    = "${pv.name}"
)

// tellsNamespace reports whether what a component expands to belongs to one
// namespace only, whatever else claims say: it holds the volume's name, which holds
// the claim's UID and is nobody's choice, or the namespace can be read from it, as
// characters that it can't have, or the ends of the component, stand on both its
// sides.
func tellsNamespace(component []segment) bool {
	if slices.ContainsFunc(component, func(s segment) bool { return s.name == volumeVariable }) {
		return true
	}
	backwards := slices.Clone(component)
	slices.Reverse(backwards)
	return readsNamespace(component, firstByte) || readsNamespace(backwards, lastByte)
}

// readsNamespace reports whether somebody who reads a component from one end comes
// to the namespace without doubt about where it begins and ends. Facing returns the
// byte of a literal that is read first.
func readsNamespace(segments []segment, facing func(literal string) byte) bool {
	for i, s := range segments {
		switch {
		case s.lookup == nil: // literal text is the same for all claims
		case s.name == namespaceVariable:
			return endsAt(segments[i+1:], namespaceCharacters, facing)
		case s.name == claimVariable:
			if !endsAt(segments[i+1:], claimCharacters, facing) {
				return false
			}
		default: // it may hold anything
			return false
		}
	}
	return false
}

// endsAt reports whether what follows a value shows its end: nothing, or a literal
// that begins with what the value can't hold.
func endsAt(rest []segment, characters string, facing func(string) byte) bool {
	return len(rest) == 0 || rest[0].lookup == nil && strings.IndexByte(characters, facing(rest[0].literal)) < 0
}

func firstByte(literal string) byte { return literal[0] }

func lastByte(literal string) byte { return literal[len(literal)-1] }
