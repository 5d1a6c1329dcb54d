package chart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestTestsWriteAsWhoMay: the pods of "helm test" by classes.
func TestTestsWriteAsWhoMay(t *testing.T) {
	type user struct {
		ID, Group  int64
		Restricted bool
	}
	for name, c := range map[string]struct {
		args []string
		want map[string]user
	}{
		"default":  {nil, map[string]user{"berth-test-berth-hostpath": {65532, 0, true}}},
		"nfs only": {[]string{"--values", "testdata/nfs-only.yaml"}, map[string]user{"berth-test-berth-nfs": {65532, 0, true}}},
		"by class": {
			[]string{"--set-json", `storageClasses=[{"name":"a","driver":"hostpath","parameters":{"volumeType":"hostPath","uid":"1000"}},{"name":"b","driver":"nfs","parameters":{"server":"nas","share":"/","mode":"2770","gid":2000}}]`},
			map[string]user{"berth-test-a": {1000, 0, true}, "berth-test-b": {65532, 2000, true}},
		},
		"by value": {[]string{"--set-json", `tests={"runAsUser":0,"storageClasses":["berth-hostpath","another"]}`}, map[string]user{"berth-test-berth-hostpath": {0, 0, false}, "berth-test-another": {0, 0, false}}},
		"none":     {[]string{"--set-json", "storageClasses=[]"}, map[string]user{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]user{}
			for _, o := range render(t, c.args...) {
				if o.GetKind() == "Pod" {
					security := decode[corev1.Pod](t, o).Spec.SecurityContext
					got[o.GetName()] = user{*security.RunAsUser, security.SupplementalGroups[0], *security.RunAsNonRoot}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTestsGoWhereTheAgentsAre, though not to every node that these tolerate.
func TestTestsGoWhereTheAgentsAre(t *testing.T) {
	const named = `{"key":"disks","operator":"Exists"}`
	const groups = `agent={"nodeSelector":{"disks":"hdd"},"groups":[{"name":"nvme","nodeSelector":{"disks":"nvme"},"tolerations":[` + named + `],"pools":[{"name":"fast","path":"/mnt/nvme"}]}]},` +
		`storageClasses=[{"name":"slow","driver":"hostpath"},{"name":"fast","driver":"hostpath","parameters":{"pool":"fast"}},{"name":"nfs","driver":"nfs","parameters":{"server":"nas","share":"/"}}]`
	for name, c := range map[string]struct {
		set  string
		want map[string]string // by class: node selector, and keys of tolerations
	}{
		"as agents": {groups, map[string]string{"slow": "hdd []", "fast": `nvme ["disks"]`, "nfs": " []"}},
		"by value":  {groups + `,tests={"nodeSelector":{"disks":"any"},"tolerations":[` + named + `]}`, map[string]string{"slow": `any ["disks"]`, "fast": `any ["disks"]`, "nfs": `any ["disks"]`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]string{}
			for _, o := range render(t, "--set-json", c.set) {
				if o.GetKind() == "Pod" {
					spec := decode[corev1.Pod](t, o).Spec
					keys := []string{}
					for _, toleration := range spec.Tolerations {
						keys = append(keys, toleration.Key)
					}
					got[strings.TrimPrefix(o.GetName(), "berth-test-")] = fmt.Sprintf("%s %q", spec.NodeSelector["disks"], keys)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestAgentsKeepApart: two DaemonSets whose nodes overlap never run two agents on
// one, and an update of one DaemonSet is not held up by its own pods.
func TestAgentsKeepApart(t *testing.T) {
	all := byID(t, render(t, "--values", "testdata/everything.yaml"))
	for name, group := range map[string]string{"DaemonSet/storage-agent": "main", "DaemonSet/storage-agent-nvme": "nvme"} {
		pod := podTemplate(t, all[name])
		affinity := pod.Spec.Affinity
		if affinity == nil || affinity.PodAntiAffinity == nil || len(affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) != 1 {
			t.Errorf("%s has affinity %v", name, affinity)
			continue
		}
		term := affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0]
		expressions := term.LabelSelector.MatchExpressions
		if term.TopologyKey != corev1.LabelHostname || len(expressions) != 1 || expressions[0].Operator != "NotIn" || !slices.Equal(expressions[0].Values, []string{group}) {
			t.Errorf("%s keeps away from %v", name, term)
		}
		for key, value := range term.LabelSelector.MatchLabels {
			if pod.Labels[key] != value {
				t.Errorf("%s keeps away from pods with %s=%s, which agents don't have", name, key, value)
			}
		}
		if pod.Labels[expressions[0].Key] != group {
			t.Errorf("%s is of group %s", name, pod.Labels[expressions[0].Key])
		}
		if hasNodes := affinity.NodeAffinity != nil; hasNodes != (group == "main") {
			t.Errorf("%s: node affinity %v", name, affinity.NodeAffinity)
		}
	}
	own := `agent.affinity={"podAntiAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"topologyKey":"zone"}]}},agent.groups=[{"name":"a","pools":[{"name":"a","path":"/a"}]}]`
	terms := podTemplate(t, byID(t, render(t, "--set-json", own))["DaemonSet/berth-agent"]).Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if len(terms) != 2 || terms[0].TopologyKey != "zone" {
		t.Errorf("with an affinity of one's own: %v", terms)
	}
	if affinity := podTemplate(t, byID(t, render(t))["DaemonSet/berth-agent"]).Spec.Affinity; affinity != nil {
		t.Errorf("the only DaemonSet has %v", affinity)
	}
}

func TestSecurityContextOfAgents(t *testing.T) {
	const set = `agent.seLinuxOptions={"type":"spc_t"},agent.podSecurityContext={"supplementalGroups":[7]}`
	spec := podTemplate(t, byID(t, render(t, "--set-json", set))["DaemonSet/berth-agent"]).Spec
	want := corev1.SELinuxOptions{Type: "spc_t"}
	if diff := cmp.Diff(&want, spec.Containers[0].SecurityContext.SELinuxOptions); diff != "" {
		t.Error(diff)
	}
	if spec.Containers[0].SecurityContext.RunAsUser == nil || !slices.Equal(spec.SecurityContext.SupplementalGroups, []int64{7}) {
		t.Errorf("%+v, %+v", spec.SecurityContext, spec.Containers[0].SecurityContext)
	}
}

// TestMonitorVerifiesTheController when there is a certificate to verify.
func TestMonitorVerifiesTheController(t *testing.T) {
	endpoint := func(t *testing.T, args ...string) map[string]any {
		t.Helper()
		all := byID(t, render(t, append([]string{"--set", "metrics.monitors.enabled=true"}, args...)...))
		endpoints, _, err := unstructured.NestedSlice(all["ServiceMonitor/berth-controller"].Object, "spec", "endpoints")
		if err != nil || len(endpoints) != 1 {
			t.Fatalf("%v, %v", endpoints, err)
		}
		return endpoints[0].(map[string]any)
	}
	secret := map[string]any{"secret": map[string]any{"name": "cert", "key": "ca.crt"}}
	for name, c := range map[string]struct {
		args []string
		want map[string]any
	}{
		"own name":   {[]string{"--set", "metrics.certificateSecret=cert"}, map[string]any{"ca": secret, "serverName": "berth-controller-metrics.berth-system.svc"}},
		"other name": {[]string{"--set", "metrics.certificateSecret=cert,metrics.serverName=berth.example"}, map[string]any{"ca": secret, "serverName": "berth.example"}},
		"none":       {nil, map[string]any{"insecureSkipVerify": true}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, endpoint(t, c.args...)["tlsConfig"]); diff != "" {
				t.Error(diff)
			}
		})
	}
	withToken := endpoint(t, "--set", "metrics.monitors.tokenSecret=prometheus")
	want := map[string]any{"credentials": map[string]any{"name": "prometheus", "key": "token"}}
	if diff := cmp.Diff(want, withToken["authorization"]); diff != "" || withToken["bearerTokenFile"] != nil {
		t.Errorf("%s, bearerTokenFile %v", diff, withToken["bearerTokenFile"])
	}

	pod := podTemplate(t, byID(t, render(t, "--set", "metrics.certificateSecret=cert"))["Deployment/berth-controller"]).Spec
	mounts := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounts[m.MountPath] = m.Name
	}
	for flag, file := range map[string]string{"--metrics-cert-file=": "tls.crt", "--metrics-key-file=": "tls.key"} {
		i := slices.IndexFunc(pod.Containers[0].Args, func(a string) bool { return strings.HasPrefix(a, flag) })
		if i < 0 {
			t.Errorf("no %s", flag)
			continue
		}
		path := strings.TrimPrefix(pod.Containers[0].Args[i], flag)
		volume := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mounts[filepath.Dir(path)] })
		if filepath.Base(path) != file || volume < 0 || pod.Volumes[volume].Secret.SecretName != "cert" {
			t.Errorf("%s%s is not of the Secret", flag, path)
		}
	}
}

// TestNoAlertThatNeverEnds: where nobody says who leads there is no alert that
// nobody does, and all others are there.
func TestNoAlertThatNeverEnds(t *testing.T) {
	alerts := func(args ...string) []string {
		t.Helper()
		rule := byID(t, render(t, append([]string{"--set", "metrics.prometheusRule.enabled=true"}, args...)...))["PrometheusRule/berth"]
		groups, _, err := unstructured.NestedSlice(rule.Object, "spec", "groups")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range groups {
			for _, r := range g.(map[string]any)["rules"].([]any) {
				names = append(names, r.(map[string]any)["alert"].(string))
			}
		}
		return names
	}
	all := alerts()
	if !slices.Contains(all, "BerthNotRunning") {
		t.Fatalf("%v", all)
	}
	rest := slices.DeleteFunc(all, func(name string) bool { return name == "BerthNotRunning" })
	for _, off := range []string{"metrics.enabled=false", "leaderElection.enabled=false,replicaCount=1"} {
		if diff := cmp.Diff(rest, alerts("--set", off)); diff != "" {
			t.Errorf("with %s:\n%s", off, diff)
		}
	}
}

// TestLeaseHasAFlowOfItsOwn: what renews it is matched before the schema for all
// the controller's requests, and is exactly what the controller may do.
func TestLeaseHasAFlowOfItsOwn(t *testing.T) {
	all := byID(t, render(t, "--values", "testdata/everything.yaml"))
	lease := decode[flowcontrolv1.FlowSchema](t, all["FlowSchema/storage-leader-election"])
	rest := decode[flowcontrolv1.FlowSchema](t, all["FlowSchema/storage-controller"])
	if lease.Spec.MatchingPrecedence >= rest.Spec.MatchingPrecedence {
		t.Errorf("the schema for the Lease has precedence %d, the other %d", lease.Spec.MatchingPrecedence, rest.Spec.MatchingPrecedence)
	}
	if diff := cmp.Diff(rest.Spec.Rules[0].Subjects, lease.Spec.Rules[0].Subjects); diff != "" {
		t.Errorf("of other subjects:\n%s", diff)
	}
	var granted []string
	for _, rule := range decode[rbacv1.Role](t, all["Role/storage-controller"]).Rules {
		if slices.Contains(rule.Resources, "leases") {
			granted = append(granted, rule.Verbs...)
		}
	}
	flows := slices.Clone(lease.Spec.Rules[0].ResourceRules[0].Verbs)
	slices.Sort(granted)
	slices.Sort(flows)
	if diff := cmp.Diff(granted, flows); diff != "" {
		t.Errorf("verbs granted (-) and in the flow (+):\n%s", diff)
	}
	if byID(t, render(t, "--set", "flowSchema.enabled=true,leaderElection.enabled=false,replicaCount=1"))["FlowSchema/berth-leader-election"] != nil {
		t.Error("a schema for a Lease that there is not")
	}
}

// TestSecondReleaseIsRefused by objects of the first, which have no other name in
// any release.
func TestSecondReleaseIsRefused(t *testing.T) {
	c := newClient(t)
	for _, file := range []string{"rbac.yaml", "admissionpolicies.yaml"} {
		for _, o := range render(t, "--show-only", "templates/"+file) {
			if o.GetKind() != "ClusterRole" && o.GetKind() != "ValidatingAdmissionPolicy" {
				continue
			}
			err := c.Create(t.Context(), o)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := c.Delete(context.Background(), o); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for object, off := range map[string]string{
		`ClusterRole "berth-controller"`:                    "admissionPolicy.enabled=false",
		`ValidatingAdmissionPolicy "berth-storage-classes"`: "rbac.create=false",
	} {
		_, err := helmOnServer(t, "install", "second", chart(t), "--namespace", "other", "--dry-run=server", "--set", off)
		if err == nil || !strings.Contains(err.Error(), object) || !strings.Contains(err.Error(), "exists and cannot be imported into the current release") {
			t.Errorf("with %s: %v", off, err)
		}
	}
}

// TestNotesSayWhoMayNotRead: monitors without readers get 403.
func TestNotesSayWhoMayNotRead(t *testing.T) {
	const warning = "Prometheus gets 403 from the controller"
	withNotes := filepath.Join(t.TempDir(), "berth")
	if err := os.CopyFS(withNotes, os.DirFS(chart(t))); err != nil {
		t.Fatal(err)
	}
	// "helm template" shows no notes: here they are an object.
	notes := `{{ define "notes" }}` + read(t, "templates", "NOTES.txt") + `{{ end }}{{ dict "kind" "Notes" "text" (include "notes" .) | toYaml }}`
	if err := os.WriteFile(filepath.Join(withNotes, "templates", "notes.yaml"), []byte(notes), 0o600); err != nil {
		t.Fatal(err)
	}
	for set, want := range map[string]bool{
		"metrics.monitors.enabled=true": true,
		"metrics.monitors.enabled=true,metrics.readers[0].name=a,metrics.readers[0].namespace=b": false,
		"metrics.monitors.enabled=false": false,
	} {
		text, err := helm(t, "template", release, withNotes, "--kube-version", rendered, "--show-only", "templates/notes.yaml", "--set", set)
		if err != nil {
			t.Fatal(err)
		}
		shown, _, err := unstructured.NestedString(objects(t, text)[0].Object, "text")
		if err != nil || !strings.Contains(shown, "is installed in namespace") || strings.Contains(shown, warning) != want {
			t.Errorf("with %s: %v: %s", set, err, shown)
		}
	}
}
