package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

var (
	target     = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
	useOfMake  = regexp.MustCompile(`(?m)(?:^|[;(] ?)(?:[A-Z_]+=\S+ )*make ([a-z][a-z0-9-]*)`)
	ofCommands = []string{"", "sh", "bash", "console"}
)

// TestMakeTargetsOfTheDocumentationExist reads inline code and fenced commands;
// prose may make anything.
func TestMakeTargetsOfTheDocumentationExist(t *testing.T) {
	r := checkout(t)
	makefile, err := os.ReadFile(filepath.Join(r.root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	for _, match := range target.FindAllSubmatch(makefile, -1) {
		exists[string(match[1])] = true
	}
	for _, p := range r.pages {
		code := slices.Clone(p.snippets)
		for _, b := range p.blocks {
			if slices.Contains(ofCommands, b.language) {
				code = append(code, b.code)
			}
		}
		for _, snippet := range code {
			for _, match := range useOfMake.FindAllStringSubmatch(snippet, -1) {
				if !exists[match[1]] {
					t.Errorf("%s: there is no make %s", p.path, match[1])
				}
			}
		}
	}
}
