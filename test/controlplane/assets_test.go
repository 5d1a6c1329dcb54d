package controlplane_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-storage/berth/test/controlplane"
)

func TestErrorNamesMissingBinariesAndRemedy(t *testing.T) {
	tests := map[string]struct {
		present []string
		want    []string
	}{
		"empty folder": {
			want: []string{"etcd", "kube-scheduler", "make cluster-assets"},
		},
		"setup-envtest's bundle": {
			present: []string{"etcd", "kube-apiserver", "kubectl"},
			want:    []string{"kube-controller-manager", "setup-envtest", "unset KUBEBUILDER_ASSETS", "make cluster-assets"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, binary := range tt.present {
				if err := os.WriteFile(filepath.Join(dir, binary), nil, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv(controlplane.AssetsEnv, dir)
			t.Setenv(controlplane.VersionEnv, "")
			_, err := controlplane.Start(t.Context(), controlplane.Options{})
			if !errors.Is(err, controlplane.ErrNoAssets) {
				t.Fatalf("Start = %v, want %v", err, controlplane.ErrNoAssets)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not mention %q", err, want)
				}
			}
		})
	}
}

func TestEnvironmentSaysWhichBuildOfTheRepository(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte("module github.com/berth-storage/berth\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1.9.3", "v1.37.2", "v1.3.1", "v1.34.4", "v1.34.10", "not-a-version"} {
		dir := filepath.Join(root, "bin", "k8s", version)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, binary := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"} {
			if err := os.WriteFile(filepath.Join(dir, binary), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	below := filepath.Join(root, "test", "controlplane")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(below)
	t.Setenv(controlplane.AssetsEnv, "")
	tests := map[string]struct{ wanted, folder, complaint string }{
		"the newest":           {"", "v1.37.2", ""},
		"a minor version":      {"1.34", "v1.34.10", ""},
		"with a v":             {"v1.34", "v1.34.10", ""},
		"no prefix of another": {"1.3", "v1.3.1", ""},
		"a version":            {"1.34.4", "v1.34.4", ""},
		"a version with a v":   {"v1.34.4", "v1.34.4", ""},
		"a minor not built":    {"1.35", "", "make cluster-assets KUBERNETES=1.35"},
		"a version not built":  {"v1.34.5", "", "make cluster-assets KUBERNETES=v1.34.5"},
		"something else":       {"newest", "", "such as 1.34 or v1.34.4"},
		"a candidate":          {"1.34.4-rc.1", "", "such as 1.34 or v1.34.4"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv(controlplane.VersionEnv, tt.wanted)
			got, err := controlplane.FindAssets()
			if tt.complaint != "" {
				if err == nil || !strings.Contains(err.Error(), tt.complaint) {
					t.Errorf("FindAssets = %s, %v, want an error with %q", got, err, tt.complaint)
				}
				return
			}
			if err != nil || filepath.Base(got) != tt.folder {
				t.Errorf("FindAssets = %s, %v, want the folder %s", got, err, tt.folder)
			}
		})
	}
}

func TestFolderAndVersionExcludeEachOther(t *testing.T) {
	t.Setenv(controlplane.AssetsEnv, t.TempDir())
	t.Setenv(controlplane.VersionEnv, "1.34")
	_, err := controlplane.FindAssets()
	if err == nil || !strings.Contains(err.Error(), "both set") {
		t.Errorf("FindAssets = %v, want a complaint that both are set", err)
	}
}

func TestNothingBuiltTellsHowToBuild(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("go.mod", []byte("module github.com/berth-storage/berth\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv(controlplane.AssetsEnv, "")
	t.Setenv(controlplane.VersionEnv, "")
	_, err := controlplane.FindAssets()
	if !errors.Is(err, controlplane.ErrNoAssets) || !strings.Contains(err.Error(), "make cluster-assets") {
		t.Errorf("FindAssets = %v, want %v and what to do", err, controlplane.ErrNoAssets)
	}
}
