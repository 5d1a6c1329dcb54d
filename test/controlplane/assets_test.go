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

func TestNewestBuildOfTheRepositoryIsTheDefault(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte("module github.com/berth-storage/berth\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1.9.3", "v1.37.2", "not-a-version"} {
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
	got, err := controlplane.FindAssets()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(got) != "v1.37.2" {
		t.Errorf("FindAssets = %s, want the highest version", got)
	}
}

func TestNothingBuiltTellsHowToBuild(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("go.mod", []byte("module github.com/berth-storage/berth\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv(controlplane.AssetsEnv, "")
	_, err := controlplane.FindAssets()
	if !errors.Is(err, controlplane.ErrNoAssets) || !strings.Contains(err.Error(), "make cluster-assets") {
		t.Errorf("FindAssets = %v, want %v and what to do", err, controlplane.ErrNoAssets)
	}
}
