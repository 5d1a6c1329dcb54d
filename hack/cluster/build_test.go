package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStampFollowsEverySource(t *testing.T) {
	source := t.TempDir()
	b := &build{source: source, release: release{version: "v1.2.3", modFile: filepath.Join(source, "go.mod")}}
	for _, file := range []string{"go.mod", "go.sum"} {
		if err := os.WriteFile(filepath.Join(source, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	for _, change := range []struct{ name, file, text string }{
		{"first source", "main.go", "package main"},
		{"another source", "main.go", "package main // changed"},
		{"another requirement", "go.mod", "a"},
		{"another sum", "go.sum", "a b"},
		{"another file", "extra.go", "package main"},
	} {
		if err := os.WriteFile(filepath.Join(b.source, change.file), []byte(change.text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp, err := b.stamp()
		if err != nil {
			t.Fatal(err)
		}
		if earlier, ok := seen[stamp]; ok {
			t.Errorf("%s has the stamp of %s", change.name, earlier)
		}
		seen[stamp] = change.name
	}
	b.version = "v1.2.4"
	stamp, err := b.stamp()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := seen[stamp]; ok {
		t.Error("another version has the same stamp")
	}
}

func TestBuildIsFreshOnlyWithItsBinaries(t *testing.T) {
	b := &build{out: t.TempDir()}
	if err := os.WriteFile(filepath.Join(b.out, stampFile), []byte("s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b.fresh("s\n") {
		t.Error("fresh without binaries")
	}
	for _, name := range b.components() {
		if err := os.WriteFile(filepath.Join(b.out, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !b.fresh("s\n") {
		t.Error("not fresh with the stamp and every binary")
	}
	if b.fresh("other\n") {
		t.Error("fresh with another stamp")
	}
}

func TestGoErrorsSayWhatToDo(t *testing.T) {
	tests := map[string]string{
		"go: go.mod requires go >= 1.26.0 (running go 1.22.1; GOTOOLCHAIN=local)": "too old",
		"write /tmp/x: no space left on device":                                   "disk is full",
		`Get "https://proxy.example.com": dial tcp: lookup: no such host`:         "GOPROXY",
		"module lookup disabled by GOPROXY=off":                                   "GOPROXY",
		"k8s.io/x: /usr/lib/go/link: signal: killed":                              "memory",
	}
	for complaint, want := range tests {
		cause := errors.New("exit status 1")
		err := explain(cause, complaint)
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), complaint) {
			t.Errorf("explain(%q) = %v, want the cause and what Go said", complaint, err)
		}
		if _, hint, _ := strings.Cut(err.Error(), "=> "); !strings.Contains(hint, want) {
			t.Errorf("hint for %q = %q, want %q in it", complaint, hint, want)
		}
	}
}

func TestCompileErrorIsNoImportPath(t *testing.T) {
	tests := map[string]bool{
		"k8s.io/kubernetes/cmd/kube-apiserver/app": true,
		"time": true,
		"# k8s.io/kubernetes/cmd/kube-apiserver/app": false,
		"./main.go:12:3: undefined: x":               false,
		"":                                           false,
	}
	for line, want := range tests {
		if got := isImportPath(line); got != want {
			t.Errorf("isImportPath(%q) = %t, want %t", line, got, want)
		}
	}
}
