package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"

	"github.com/berth-storage/berth/test/controlplane"
)

// TestBerthCompilesForAllArchitectures type-checks what it consists of, from
// source, which takes seconds where compiling takes minutes. Words of 32 bits,
// and system calls that differ, are what breaks.
func TestBerthCompilesForAllArchitectures(t *testing.T) {
	if raceDetector {
		t.Skip("this takes minutes with the race detector; make check-architectures does it without")
	}
	const module = "github.com/berth-storage/berth"
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			loaded, err := packages.Load(&packages.Config{
				Context:   t.Context(),
				Mode:      packages.LoadSyntax | packages.NeedDeps,
				Env:       append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=", "GOARCH="+arch),
				ParseFile: parseBodiesIn(root),
			}, module)
			if err != nil {
				t.Fatal(err)
			}
			checked := 0
			packages.Visit(loaded, nil, func(p *packages.Package) {
				if p.PkgPath != module && !strings.HasPrefix(p.PkgPath, module+"/") {
					return
				}
				checked++
				for _, err := range p.Errors {
					t.Error(err)
				}
			})
			if checked < 10 {
				t.Errorf("checked %d packages of Berth: where are the others?", checked)
			}
		})
	}
}

// parseBodiesIn returns a parser of files that leaves out what functions do,
// other than those in a folder.
func parseBodiesIn(root string) func(*token.FileSet, string, []byte) (*ast.File, error) {
	return func(set *token.FileSet, name string, source []byte) (*ast.File, error) {
		file, err := parser.ParseFile(set, name, source, parser.SkipObjectResolution)
		if file == nil || strings.HasPrefix(name, root+string(filepath.Separator)) {
			return file, err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				f.Body = nil
			}
		}
		return file, err
	}
}
