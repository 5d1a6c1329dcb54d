package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-storage/berth/test/controlplane"
)

// sourceWith makes a folder of module files that require these versions.
func sourceWith(t *testing.T, versions map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for file, version := range versions {
		text := "module m\n\nrequire (\n\tk8s.io/kubectl v0.1.2\n\tk8s.io/kubernetes " + version + "\n)\n"
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestVersionIsBuiltByTheFileThatRequiresIt(t *testing.T) {
	source := sourceWith(t, map[string]string{"go.mod": "v1.37.2", "go-1.34.mod": "v1.34.4"})
	tests := map[string]struct {
		wanted, version, modFile, complaint string
		derived                             bool
	}{
		"nothing":           {wanted: "", version: "v1.37.2", modFile: "go.mod"},
		"the newest":        {wanted: "1.37", version: "v1.37.2", modFile: "go.mod"},
		"a minor kept":      {wanted: "1.34", version: "v1.34.4", modFile: "go-1.34.mod"},
		"a version kept":    {wanted: "v1.34.4", version: "v1.34.4", modFile: "go-1.34.mod"},
		"another patch":     {wanted: "1.34.5", version: "v1.34.5", derived: true},
		"a minor known":     {wanted: "1.33", version: "v1.33.13", derived: true},
		"a version unknown": {wanted: "v1.32.1", version: "v1.32.1", derived: true},
		"a minor unknown":   {wanted: "1.32", complaint: "such as 1.32.1; only for 1.33, 1.34, 1.35, 1.36, 1.37"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			wanted, err := controlplane.ParseWanted(tt.wanted)
			if err != nil {
				t.Fatal(err)
			}
			got, err := chooseRelease(source, wanted)
			if tt.complaint != "" {
				if err == nil || !strings.Contains(err.Error(), tt.complaint) {
					t.Errorf("chooseRelease = %+v, %v, want an error with %q", got, err, tt.complaint)
				}
				return
			}
			want := release{version: tt.version, derived: tt.derived}
			if tt.modFile != "" {
				want.modFile = filepath.Join(source, tt.modFile)
			}
			if err != nil || got != want {
				t.Errorf("chooseRelease = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestKeptModuleFilesAreOfTheirMinorVersion(t *testing.T) {
	files, err := filepath.Glob("hyperkube/go-*.mod")
	if err != nil || len(files) == 0 {
		t.Fatalf("module files: %v, %v", files, err)
	}
	for _, file := range files {
		version, err := kubernetesVersion(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := "go-" + minorOf(version) + ".mod"; filepath.Base(file) != want {
			t.Errorf("%s requires Kubernetes %s, so it should be called %s", file, version, want)
		}
		if _, err := os.Stat(strings.TrimSuffix(file, ".mod") + ".sum"); err != nil {
			t.Errorf("%s is without checksums: %v", file, err)
		}
	}
}

func TestOnlyTheNewestHasANode(t *testing.T) {
	newest := &build{source: "/hyperkube", release: release{version: "v1.37.2", modFile: "/hyperkube/go.mod"}}
	older := &build{source: "/hyperkube", release: release{version: "v1.34.4", modFile: "/hyperkube/go-1.34.mod"}}
	for _, b := range []*build{newest, older} {
		if got := slices.Contains(b.components(), "kubelet"); got != b.hasNode() {
			t.Errorf("%s: kubelet among the components: %t", b.version, got)
		}
		if got := slices.Contains(b.flags(), "-tags=nonode"); got == b.hasNode() {
			t.Errorf("%s: flags %v with node %t", b.version, b.flags(), b.hasNode())
		}
	}
	if older.hasNode() {
		t.Error("an older version is built with kubelet")
	}
	if !slices.Contains(older.flags(), "-modfile=go-1.34.mod") {
		t.Errorf("flags of an older version: %v, without its module file", older.flags())
	}
}

// upstreamModule is an extract of what "go mod edit -json" prints for
// Kubernetes' module file.
const upstreamModule = `{
	"Module": {"Path": "k8s.io/kubernetes"},
	"Go": "1.24.0",
	"GoDebug": [{"Key": "default", "Value": "go1.24"}],
	"Require": [
		{"Path": "github.com/spf13/cobra", "Version": "v1.8.1"},
		{"Path": "go.etcd.io/etcd/server/v3", "Version": "v3.5.21", "Indirect": true}
	],
	"Replace": [
		{"Old": {"Path": "k8s.io/api"}, "New": {"Path": "./staging/src/k8s.io/api"}},
		{"Old": {"Path": "example.com/fork"}, "New": {"Path": "example.com/other", "Version": "v1.0.0"}}
	]
}`

func TestDerivedModuleHasWhatKubernetesPins(t *testing.T) {
	var upstream goModule
	if err := json.Unmarshal([]byte(upstreamModule), &upstream); err != nil {
		t.Fatal(err)
	}
	got, err := moduleText("v1.33.13", upstream)
	if err != nil {
		t.Fatal(err)
	}
	const want = `module github.com/berth-storage/berth/hack/cluster/hyperkube

go 1.24.0

godebug default=go1.24

require (
	github.com/spf13/cobra v1.8.1
	go.etcd.io/etcd/server/v3 v3.5.21
	k8s.io/client-go v0.33.13
	k8s.io/component-base v0.33.13
	k8s.io/kubectl v0.33.13
	k8s.io/kubernetes v1.33.13
)

replace (
	k8s.io/api => k8s.io/api v0.33.13
)
`
	if got != want {
		t.Errorf("module:\n%s\nwant:\n%s", got, want)
	}
	upstream.Require = upstream.Require[:1]
	if text, err := moduleText("v1.33.13", upstream); err == nil {
		t.Errorf("without a version of etcd: %s", text)
	}
}
