package chart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/berth-storage/berth/test/controlplane"
)

// The environment variables that name the tools.
const (
	helmEnv        = "BERTH_HELM"
	kubeconformEnv = "BERTH_KUBECONFORM"
)

const (
	release   = "berth"
	namespace = "berth-system"
	// rendered is the version that templates are told they are for.
	rendered = "1.37.2"
)

// tool returns the tool that an environment variable names, or skips the test.
func tool(t *testing.T, env string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		t.Skipf(`%s names no tool: "make chart-test" builds it`, env)
	}
	return path
}

// repository returns the path of a file of this repository.
func repository(t *testing.T, path ...string) string {
	t.Helper()
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{root}, path...)...)
}

func chart(t *testing.T) string {
	t.Helper()
	return repository(t, "charts", "berth")
}

// read returns the text of a file of the chart.
func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{chart(t)}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// helm runs helm without a cluster.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, helmEnv), args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w: %s%s", args[0], err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// helmOnServer runs helm with the API server of these tests.
func helmOnServer(t *testing.T, args ...string) (string, error) {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := apiServer(t).WriteKubeconfig(kubeconfig, "admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	return helm(t, append(args, "--kubeconfig", kubeconfig)...)
}

// template renders the chart with further arguments.
func template(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return helm(t, append([]string{"template", release, chart(t), "--namespace", namespace, "--kube-version", rendered}, args...)...)
}

// render renders the chart and returns its objects.
func render(t *testing.T, args ...string) []*unstructured.Unstructured {
	t.Helper()
	text, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// kustomize returns the objects of a kustomization.
func kustomize(t *testing.T, path ...string) []*unstructured.Unstructured {
	t.Helper()
	assets, err := controlplane.FindAssets()
	if err != nil {
		t.Fatal(err)
	}
	text, err := exec.CommandContext(t.Context(), filepath.Join(assets, "kubectl"), "kustomize", repository(t, path...)).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		t.Fatalf("kustomize: %s", failed.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, string(text))
}

// objects reads the documents of a YAML text.
func objects(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := documents.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
}

// id names an object.
func id(o *unstructured.Unstructured) string {
	return strings.Trim(o.GetKind()+"/"+o.GetName(), "/")
}

// byID returns objects by their names.
func byID(t *testing.T, all []*unstructured.Unstructured) map[string]*unstructured.Unstructured {
	t.Helper()
	found := map[string]*unstructured.Unstructured{}
	for _, o := range all {
		if found[id(o)] != nil {
			t.Errorf("%s is there twice", id(o))
		}
		found[id(o)] = o
	}
	return found
}

// valueFiles returns the sets of values in testdata, by name.
func valueFiles(t *testing.T) map[string][]string {
	t.Helper()
	sets := map[string][]string{"default": nil}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		sets[strings.TrimSuffix(filepath.Base(file), ".yaml")] = []string{"--values", file}
	}
	return sets
}
