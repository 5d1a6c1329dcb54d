package chart

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// groupsOfOthers are those of objects that a cluster knows only when somebody
// has installed them.
var groupsOfOthers = []string{"monitoring.coreos.com", "cert-manager.io"}

// TestAPIServerAcceptsEverything sends all that the chart and config/ can make to
// a real API server, which validates and admits it as always, and keeps nothing.
func TestAPIServerAcceptsEverything(t *testing.T) {
	c := newClient(t)
	for _, name := range []string{namespace, "other"} {
		err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metaNamed(name)})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T, objects []*unstructured.Unstructured) {
		t.Helper()
		for _, o := range objects {
			if slices.Contains(groupsOfOthers, o.GroupVersionKind().Group) {
				continue
			}
			apply := client.ApplyConfigurationFromUnstructured(o)
			if err := c.Apply(t.Context(), apply, client.DryRunAll, client.FieldOwner("test"), client.ForceOwnership); err != nil {
				t.Errorf("%s: %v", id(o), err)
			}
		}
	}
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) { check(t, render(t, args...)) })
	}
	t.Run("kustomize", func(t *testing.T) { check(t, kustomize(t, "config", "default")) })
}

// TestKubeconform checks the same against the API server's own schemas, where
// no field may be unknown.
func TestKubeconform(t *testing.T) {
	kubeconform := tool(t, kubeconformEnv)
	schemas := t.TempDir()
	writeSchemas(t, schemas)
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			text, err := template(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), kubeconform, "-summary", "-strict",
				"-skip", "ServiceMonitor,PodMonitor,PrometheusRule,Certificate",
				"-schema-location", filepath.Join(schemas, "{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json"), "-")
			cmd.Stdin = strings.NewReader(text)
			output, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, output)
			}
			t.Log(strings.TrimSpace(string(output)))
		})
	}
}

// TestKubeconformFindsMistakes guards the test above: schemas that say nothing
// accept everything.
func TestKubeconformFindsMistakes(t *testing.T) {
	kubeconform := tool(t, kubeconformEnv)
	schemas := t.TempDir()
	writeSchemas(t, schemas)
	for name, text := range map[string]string{
		"unknown field": "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ntipe: Opaque\n",
		"wrong type":    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: two}\n",
		"deep":          "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, imag: b}]}\n",
		"unknown kind":  "apiVersion: v1\nkind: Sekret\nmetadata: {name: a}\n",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), kubeconform, "-strict",
				"-schema-location", filepath.Join(schemas, "{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json"), "-")
			cmd.Stdin = strings.NewReader(text)
			if output, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("accepted: %s", output)
			}
		})
	}
}

// writeSchemas writes a JSON schema for each kind that the API server knows to a
// folder, under the names that the tests above give.
func writeSchemas(t *testing.T, dir string) {
	t.Helper()
	d, err := discovery.NewDiscoveryClientForConfig(apiServer(t).Config())
	if err != nil {
		t.Fatal(err)
	}
	paths, err := d.OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := path.Schema("application/json")
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Components map[string]map[string]any `json:"components"`
		}
		if err := json.Unmarshal(text, &document); err != nil {
			t.Fatal(err)
		}
		schemas := document.Components["schemas"]
		for _, s := range schemas {
			closeSchema(s.(map[string]any))
		}
		for name, s := range schemas {
			for _, kind := range kinds(s.(map[string]any)) {
				// kubeconform takes the version for the group where there is none.
				file := cmp.Or(kind.Group, kind.Version) + "_" + kind.Version + "_" + strings.ToLower(kind.Kind) + ".json"
				if err := writeSchema(filepath.Join(dir, file), name, document.Components); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func writeSchema(path, name string, components any) error {
	var text bytes.Buffer
	err := json.NewEncoder(&text).Encode(map[string]any{
		"$schema": "http://json-schema.org/draft-07/schema#",
		"$ref":    "#/components/schemas/" + name, "components": components,
	})
	return errors.Join(err, os.WriteFile(path, text.Bytes(), 0o600))
}

// kinds returns which kinds a schema is of: one, other than for those that every
// group has.
func kinds(s map[string]any) []schema.GroupVersionKind {
	list, _ := s["x-kubernetes-group-version-kind"].([]any)
	if len(list) != 1 {
		return nil
	}
	k, _ := list[0].(map[string]any)
	text := func(name string) string { value, _ := k[name].(string); return value }
	return []schema.GroupVersionKind{{Group: text("group"), Version: text("version"), Kind: text("kind")}}
}

// closeSchema refuses fields that a schema doesn't have.
func closeSchema(s map[string]any) {
	if properties, ok := s["properties"].(map[string]any); ok {
		if s["additionalProperties"] == nil {
			s["additionalProperties"] = false
		}
		for _, p := range properties {
			closeSchema(p.(map[string]any))
		}
	}
	if items, ok := s["items"].(map[string]any); ok {
		closeSchema(items)
	}
}

// TestControllerIsRestricted: the controller, and what "helm test" runs, meet
// the strictest level of Pod Security.
func TestControllerIsRestricted(t *testing.T) {
	c := newClient(t)
	ns := restrictedNamespace(t, c, "restricted")
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, args...) {
				var pod *corev1.Pod
				switch o.GetKind() {
				case "Deployment":
					template := podTemplate(t, o)
					pod = &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
				case "Pod":
					pod = decode[corev1.Pod](t, o)
				default:
					continue
				}
				pod.Name, pod.Namespace = "a", ns
				if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
					t.Errorf("%s: %v", id(o), err)
				}
			}
		})
	}
}

// TestAgentBreaksTheseRulesAndNoOthers lists the exceptions of agents from the
// levels of Pod Security, with their reasons in docs/security.md.
func TestAgentBreaksTheseRulesAndNoOthers(t *testing.T) {
	c := newClient(t)
	for level, want := range map[string][]string{
		"restricted": {
			`unrestricted capabilities (container "agent" must not include "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SYS_ADMIN" in securityContext.capabilities.add)`,
			`restricted volume types (volume "pool-default" uses restricted volume type "hostPath")`,
			`runAsNonRoot != true (pod or container "agent" must set securityContext.runAsNonRoot=true)`,
			`runAsUser=0 (container "agent" must not set runAsUser=0)`,
		},
		"baseline": {
			`non-default capabilities (container "agent" must not include "SYS_ADMIN" in securityContext.capabilities.add)`,
			`hostPath volumes (volume "pool-default")`,
		},
	} {
		t.Run(level, func(t *testing.T) {
			ns := restrictedNamespace(t, c, level)
			template := podTemplate(t, byID(t, render(t))["DaemonSet/berth-agent"])
			pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
			pod.Name, pod.Namespace = "a", ns
			err := c.Create(t.Context(), pod, client.DryRunAll)
			if err == nil {
				t.Fatal("it was admitted")
			}
			_, text, _ := strings.Cut(err.Error(), ": violates PodSecurity ")
			for _, violation := range want {
				if !strings.Contains(text, violation) {
					t.Errorf("no violation %s", violation)
				}
				text = strings.Replace(text, violation, "", 1)
			}
			if left := strings.Trim(text, `", :`+level+"latest"); left != "" {
				t.Errorf("more violations: %s in %v", left, err)
			}
		})
	}
}

// restrictedNamespace makes a namespace that enforces a level.
func restrictedNamespace(t *testing.T, c client.Client, level string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metaNamed("pod-security-" + level)}
	ns.Labels = map[string]string{"pod-security.kubernetes.io/enforce": level}
	if err := c.Create(t.Context(), ns); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return ns.Name
}
