package main

import (
	"debug/elf"
	"fmt"
)

// checkStatic refuses a binary that needs libraries, of which an image from
// scratch has none.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	for _, section := range f.Progs {
		if section.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically (Debian: apt-get install busybox-static)", path)
		}
	}
	return nil
}
