package controlplane

import (
	"fmt"
	"slices"
	"strings"
)

// checkFlags refuses arguments whose name cannot be told.
func checkFlags(flags []string) error {
	for _, flag := range flags {
		if name := flagName(flag); !strings.HasPrefix(flag, "--") || name == "" {
			return fmt.Errorf("argument %q: want --name=value or --name", flag)
		}
	}
	return nil
}

// mergeFlags returns the defaults without those that an override names, followed by
// the overrides. Appending alone would not do: flags that hold lists add up.
func mergeFlags(defaults, overrides []string) []string {
	merged := slices.DeleteFunc(slices.Clone(defaults), func(flag string) bool {
		return slices.ContainsFunc(overrides, func(o string) bool { return flagName(o) == flagName(flag) })
	})
	return append(merged, overrides...)
}

// flagName returns the name in an argument of the form --name=value or --name.
func flagName(flag string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
	return name
}
