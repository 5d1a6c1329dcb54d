package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/test/controlplane"
)

const metricsPage = "../../docs/metrics.md"

// series is what the page and the registries have to agree on.
type series struct{ Type, Labels string }

// TestMetricsPage runs a controller with agents, and wires an agent, and compares
// all that is in their registries with docs/metrics.md. There is one such test,
// since the controller's registry is the process's.
func TestMetricsPage(t *testing.T) {
	page := readMetricsPage(t)
	for role, registry := range map[string]prometheus.Gatherer{
		"controller": runController(t),
		"agent":      wireAgent(t),
	} {
		t.Run(role, func(t *testing.T) {
			have := described(t, registry)
			types := gathered(t, registry)
			for name, documented := range page.series[role] {
				labels, ok := have[name]
				if !ok {
					t.Errorf("%s is documented, and not there", name)
					continue
				}
				if kind, seen := types[name]; seen && kind != documented.Type {
					t.Errorf("%s is a %s, documented as a %s", name, kind, documented.Type)
				}
				if diff := cmp.Diff(labels, documented.Labels); diff != "" {
					t.Errorf("labels of %s (-have +documented):\n%s", name, diff)
				}
			}
			for metric := range have {
				if _, ok := page.series[role][metric]; !ok && !slices.ContainsFunc(page.families, func(f string) bool { return strings.HasPrefix(metric, f) }) {
					t.Errorf("%s is there, and not documented: labels %s", metric, have[metric])
				}
			}
		})
	}
}

// documentation is what the page says.
type documentation struct {
	series map[string]map[string]series // by role and name
	// families are beginnings of names that the page mentions as a whole.
	families []string
}

var (
	metricsRow = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| (counter|gauge|histogram) \\|(.*?)\\| (.+) \\|$")
	familyRow  = regexp.MustCompile("^\\| `([a-z0-9_]+_)…` \\|")
	labelName  = regexp.MustCompile("`([a-z_]+)`(?:: [^,]*)?")
)

// readMetricsPage reads the tables below the headings that name the roles.
func readMetricsPage(t *testing.T) documentation {
	t.Helper()
	text, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	page := documentation{series: map[string]map[string]series{"controller": {}, "agent": {}}}
	var roles []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			roles = nil
			for _, role := range []string{"controller", "agent"} {
				if strings.Contains(strings.ToLower(heading), role) {
					roles = append(roles, role)
				}
			}
		}
		if row := familyRow.FindStringSubmatch(line); row != nil {
			page.families = append(page.families, row[1])
		}
		row := metricsRow.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		if len(roles) == 0 {
			t.Errorf("%s is in a section that is of no role", row[1])
		}
		var labels []string
		for _, label := range labelName.FindAllStringSubmatch(row[3], -1) {
			labels = append(labels, label[1])
		}
		slices.Sort(labels)
		for _, role := range roles {
			page.series[role][row[1]] = series{Type: row[2], Labels: strings.Join(labels, " ")}
		}
	}
	return page
}

var description = regexp.MustCompile(`fqName: "([^"]*)".*constLabels: \{(.*?)\}.*variableLabels: \{(.*?)\}`)

// described returns the labels of all metrics that a registry may ever have.
func described(t *testing.T, registry prometheus.Gatherer) map[string]string {
	t.Helper()
	collector, ok := registry.(prometheus.Collector)
	if !ok {
		t.Fatalf("%T can't describe itself", registry)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		collector.Describe(descs)
	}()
	all := map[string]string{}
	for desc := range descs {
		parts := description.FindStringSubmatch(desc.String())
		if parts == nil {
			t.Errorf("can't read %s", desc)
			continue
		}
		var labels []string
		for label := range strings.SplitSeq(parts[2]+","+parts[3], ",") {
			name, _, _ := strings.Cut(label, "=")
			if name != "" {
				labels = append(labels, name)
			}
		}
		slices.Sort(labels)
		all[parts[1]] = strings.Join(labels, " ")
	}
	return all
}

// gathered returns the types of the metrics that a registry has now.
func gathered(t *testing.T, registry prometheus.Gatherer) map[string]string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for _, family := range families {
		types[family.GetName()] = strings.ToLower(family.GetType().String())
	}
	return types
}

// runController runs a controller with agents until the test ends, and returns
// its registry once it leads.
func runController(t *testing.T) prometheus.Gatherer {
	t.Helper()
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Output: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(kubeconfig, "berth", "system:masters"); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(plane.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"berth-ca", "berth-agent-tls", "berth-controller-tls", "berth-metrics-tls"} {
		if err := admin.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := NewCommand()
	cmd.SetArgs([]string{
		"controller", "--kubeconfig=" + kubeconfig, "--agent-service=agents", "--agent-namespace=default",
		"--leader-elect-namespace=default", "--tls-metrics-secret=berth-metrics-tls",
		"--metrics-bind-address=0", "--health-probe-bind-address=0", "--zap-log-level=panic",
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the controller ended: %v", err)
		}
	})
	gomega.NewWithT(t).Eventually(func() map[string]string { return gathered(t, metrics.Registry) }).
		WithTimeout(30 * time.Second).WithPolling(100 * time.Millisecond).Should(gomega.HaveKey("berth_certificate_expiration_timestamp_seconds"))
	return metrics.Registry
}

// wireAgent returns the registry of an agent as the command has it.
func wireAgent(t *testing.T) prometheus.Gatherer {
	t.Helper()
	dir := t.TempDir()
	authority, err := tlstest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Write(dir, tlstest.Agent); err != nil {
		t.Fatal(err)
	}
	o := agentOptions{nodeName: "n", certificateFiles: certificateFiles{
		certificate: filepath.Join(dir, agenttls.CertificateFile), key: filepath.Join(dir, agenttls.KeyFile), authorities: filepath.Join(dir, agenttls.AuthoritiesFile),
	}, metrics: metricsOptions{secure: secureAuto}, listen: "127.0.0.1:0"}
	o.pools, o.reserve, o.overcommit, o.projectIDs = []string{fmt.Sprintf("default=%s", t.TempDir())}, "5%", 1, "1000-2000"
	registry := prometheus.NewRegistry()
	if _, err := o.agent(registry); err != nil {
		t.Fatal(err)
	}
	return registry
}
