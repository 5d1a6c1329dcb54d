package chart

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	hostpathDriver = "hostpath.berth.storage"
	nfsDriver      = "nfs.berth.storage"
)

func metaNamed(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func newClient(t *testing.T) client.Client {
	t.Helper()
	c, err := client.New(apiServer(t).Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withPolicy returns a client of an API server that has the chart's policy.
func withPolicy(t *testing.T) client.Client {
	t.Helper()
	c := newClient(t)
	for _, o := range render(t, "--show-only", "templates/admissionpolicies.yaml") {
		if err := c.Create(t.Context(), o); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	// An API server takes a moment to see a policy.
	gomega.NewWithT(t).Eventually(func() error {
		return c.Create(t.Context(), class(hostpathDriver, "no", "such"), client.DryRunAll)
	}).ShouldNot(gomega.Succeed())
	return c
}

// TestAdmissionPolicy has a real API server judge classes by the chart's policy.
func TestAdmissionPolicy(t *testing.T) {
	c := withPolicy(t)
	const (
		longest = "StorageClass parameter "
		pattern = longest + "pathPattern: "
	)
	for name, bad := range map[string]struct {
		class *storagev1.StorageClass
		want  string
	}{
		"unknown":             {class(hostpathDriver, "size", "1", "zone", "a"), longest + `size: "1": there is no such parameter; known are existing, gid, mode, onDelete, pathPattern, pool, quota, uid, volumeType`},
		"unknown to nfs":      {onServer("pool", "ssd"), longest + `pool: "ssd": there is no such parameter; known are existing, gid, mode, mountPort, nfsVersion, onDelete, pathPattern, port, server, share, uid`},
		"volumeType":          {class(hostpathDriver, "volumeType", "nfs"), longest + `volumeType: "nfs": choose one of local, hostPath`},
		"onDelete":            {class(hostpathDriver, "onDelete", "keep"), longest + `onDelete: "keep": choose one of delete, archive, retain`},
		"existing":            {class(hostpathDriver, "existing", "yes"), longest + `existing: "yes": choose one of refuse, adopt`},
		"quota":               {class(hostpathDriver, "quota", "hard"), longest + `quota: "hard": choose one of auto, required, none`},
		"quota, empty":        {class(hostpathDriver, "quota", ""), longest + `quota: "": choose one of auto, required, none`},
		"mode in letters":     {class(hostpathDriver, "mode", "rwx"), longest + `mode: "rwx": write an octal mode such as 0770, at most 7777`},
		"mode too large":      {class(hostpathDriver, "mode", "10000"), longest + `mode: "10000": write an octal mode`},
		"mode in decimal":     {class(hostpathDriver, "mode", "0880"), longest + `mode: "0880": write an octal mode`},
		"uid":                 {class(hostpathDriver, "uid", "-1"), longest + `uid: "-1": write a number from 0 to 4294967294`},
		"gid too large":       {class(hostpathDriver, "gid", "4294967295"), longest + `gid: "4294967295": write a number from 0 to 4294967294`},
		"gid far too large":   {class(hostpathDriver, "gid", "99999999999999999999"), longest + `gid: "99999999999999999999": write a number`},
		"pattern, empty":      {class(hostpathDriver, "pathPattern", ""), pattern + `"": it is empty; leave the parameter out for ${pvc.namespace}-${pvc.name}-${pv.name}`},
		"pattern, absolute":   {class(hostpathDriver, "pathPattern", "/srv/${pv.name}"), pattern + `"/srv/${pv.name}": it must be relative, without a slash in front`},
		"pattern, slash":      {class(hostpathDriver, "pathPattern", "a/"), pattern + `"a/": it must not end with a slash`},
		"pattern, two":        {class(hostpathDriver, "pathPattern", "a//b"), pattern + `"a//b": a component between two slashes is empty`},
		"pattern, parents":    {class(hostpathDriver, "pathPattern", "../../etc"), pattern + `"../../etc": a component must not be ".", ".." or ".berth"`},
		"pattern, reserved":   {class(hostpathDriver, "pathPattern", ".berth/x"), pattern + `".berth/x": a component must not be`},
		"pattern, brace":      {class(hostpathDriver, "pathPattern", "${pvc.name"), pattern + `"${pvc.name": a variable has no closing brace`},
		"pattern, variable":   {class(hostpathDriver, "pathPattern", "${pvc.uid}"), pattern + `"${pvc.uid}": unknown variable "${pvc.uid}"; known variables: ${pvc.namespace}, ${pvc.name}, ${pv.name}, ${pvc.labels['key']}, ${pvc.annotations['key']}`},
		"pattern, of another": {class(hostpathDriver, "pathPattern", "${.PVC.name}"), pattern + `"${.PVC.name}": unknown variable "${.PVC.name}"`},
		"pattern, no key":     {class(hostpathDriver, "pathPattern", "${pvc.labels['a b']}"), pattern + `"${pvc.labels['a b']}": unknown variable`},
		"pattern, control":    {class(hostpathDriver, "pathPattern", "a\nb"), pattern + `it holds a control character`},
		"adopt, of anybody":   {class(hostpathDriver, "existing", "adopt", "pathPattern", "a/${pvc.annotations['a']}"), pattern + `"a/${pvc.annotations['a']}": with existing: adopt, claims of two namespaces could come to the same directory; make ${pvc.namespace} a component of its own`},
		"hostPath options":    {with(class(hostpathDriver, "volumeType", "hostPath"), "noatime"), `StorageClass field mountOptions: "noatime": kubelet does not support mount options for volumeType hostPath; leave them out or use volumeType local`},
		"no server":           {class(nfsDriver, "share", "/e"), longest + `server: "": is missing, and this driver can't do without`},
		"no share":            {class(nfsDriver, "server", "nas"), longest + `share: "": is missing, and this driver can't do without`},
		"empty server":        {class(nfsDriver, "server", "", "share", "/e"), longest + `server: "": write a host name or an IP address`},
		"server with a port":  {class(nfsDriver, "server", "nas:2049", "share", "/e"), longest + `server: "nas:2049": write a host name or an IP address, such as nas.example.com or 10.0.0.5, IPv6 without brackets, and a port as the parameter port`},
		"server in brackets":  {class(nfsDriver, "server", "[fd00::1]", "share", "/e"), longest + `server: "[fd00::1]": write a host name`},
		"IPv6, short":         {class(nfsDriver, "server", "1:2:3:4:5:6:7", "share", "/e"), longest + `server: "1:2:3:4:5:6:7": write a host name`},
		"IPv6, long":          {class(nfsDriver, "server", "1:2:3:4:5:6:7:8:9", "share", "/e"), longest + `server: "1:2:3:4:5:6:7:8:9": write a host name`},
		"IPv6, nothing to ::": {class(nfsDriver, "server", "1::2:3:4:5:6:7:8", "share", "/e"), longest + `server: "1::2:3:4:5:6:7:8": write a host name`},
		"IPv6, two gaps":      {class(nfsDriver, "server", "1::2::3", "share", "/e"), longest + `server: "1::2::3": write a host name`},
		"IPv6, a wide gap":    {class(nfsDriver, "server", "1:::2", "share", "/e"), longest + `server: "1:::2": write a host name`},
		"IPv6, digits":        {class(nfsDriver, "server", "fd00::12345", "share", "/e"), longest + `server: "fd00::12345": write a host name`},
		"IPv6, open end":      {class(nfsDriver, "server", "fd00::1:", "share", "/e"), longest + `server: "fd00::1:": write a host name`},
		"IPv6 with a zone":    {class(nfsDriver, "server", "fe80::1%eth0", "share", "/e"), longest + `server: "fe80::1%eth0": write a host name`},
		"relative share":      {class(nfsDriver, "server", "nas", "share", "e"), longest + `share: "e": write an absolute path, such as /export`},
		"share with parents":  {class(nfsDriver, "server", "nas", "share", "/a/../b"), longest + `share: "/a/../b": write it without "..", ".", double slashes and a slash at the end`},
		"share with a slash":  {class(nfsDriver, "server", "nas", "share", "/a/"), longest + `share: "/a/": write it without`},
		"share, two slashes":  {class(nfsDriver, "server", "nas", "share", "//a"), longest + `share: "//a": write it without`},
		"version":             {onServer("nfsVersion", "4.2"), longest + `nfsVersion: "4.2": choose one of auto, 4.1, 4.0, 3`},
		"port":                {onServer("port", "0"), longest + `port: "0": write a port number from 1 to 65535`},
		"port too large":      {onServer("mountPort", "65536"), longest + `mountPort: "65536": write a port number from 1 to 65535`},
		"port in letters":     {onServer("port", "nfs"), longest + `port: "nfs": write a port number from 1 to 65535`},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), bad.class, client.DryRunAll)
			if err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%v\nwant %s", err, bad.want)
			}
		})
	}

	for name, good := range map[string]*storagev1.StorageClass{
		"nothing":              class(hostpathDriver),
		"everything":           class(hostpathDriver, "pool", "ssd", "volumeType", "local", "quota", "required", "onDelete", "archive", "existing", "adopt", "mode", "02770", "uid", "0", "gid", "4294967294"),
		"adopt":                class(hostpathDriver, "existing", "adopt", "pathPattern", "restored/${pvc.namespace}/${pvc.name}"),
		"hostPath":             class(hostpathDriver, "volumeType", "hostPath"),
		"mount options":        with(class(hostpathDriver), "noatime"),
		"a deep pattern":       class(hostpathDriver, "pathPattern", "${pvc.namespace}/${pvc.labels['app.kubernetes.io/name']}/x-${pvc.annotations['a']}.d"),
		"dollars and dots":     class(hostpathDriver, "pathPattern", "$a/$${pv.name}/..a/b.../{c}"),
		"nfs":                  onServer(),
		"everything of nfs":    with(onServer("nfsVersion", "4.1", "port", "20490", "mountPort", "20048", "pathPattern", "a/${pv.name}"), "hard", "nfsvers=4.1"),
		"IPv4":                 class(nfsDriver, "server", "10.0.0.5", "share", "/"),
		"IPv6":                 class(nfsDriver, "server", "fd00::1", "share", "/a/.b/c..d"),
		"IPv6, full":           class(nfsDriver, "server", "FD00:1:2:3:4:5:6:7", "share", "/"),
		"IPv6, from its gap":   class(nfsDriver, "server", "::2:3:4:5:6:7:8", "share", "/"),
		"IPv6, up to its gap":  class(nfsDriver, "server", "2001:db8::", "share", "/"),
		"another provisioner":  class("rancher.io/local-path", "nodePath", "/opt", "pathPattern", "/../x"),
		"a trailing dot":       class(nfsDriver, "server", "nas.example.com.", "share", "/e"),
		"leading zeros of uid": class(hostpathDriver, "uid", "0000000000000000007"),
	} {
		t.Run("good: "+name, func(t *testing.T) {
			if err := c.Create(t.Context(), good, client.DryRunAll); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAdmissionPolicyOfChanges: mount options of a class can be changed, so they
// are looked at again then. Else a class that is older than the policy may stay as
// it is.
func TestAdmissionPolicyOfChanges(t *testing.T) {
	c := newClient(t)
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metaNamed("berth-storage-classes")}
	if err := client.IgnoreNotFound(c.Delete(t.Context(), binding)); err != nil {
		t.Fatal(err)
	}
	old := with(class(hostpathDriver, "volumeType", "hostPath"), "noatime")
	old.Name = "older-than-the-policy"
	gomega.NewWithT(t).Eventually(func() error { return c.Create(t.Context(), old) }).Should(gomega.Succeed())
	t.Cleanup(func() {
		if err := c.Delete(context.Background(), old); err != nil {
			t.Error(err)
		}
	})
	withPolicy(t)
	err := c.Update(t.Context(), with(old.DeepCopy(), "nodiratime"), client.DryRunAll)
	if want := `StorageClass field mountOptions: "nodiratime": kubelet does not support`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nwant %s", err, want)
	}
	labelled := old.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	for name, changed := range map[string]*storagev1.StorageClass{"labels": labelled, "no options": with(old.DeepCopy())} {
		if err := c.Update(t.Context(), changed, client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// functionsOf129 are those that the policy calls, all of Kubernetes 1.29. An API
// server compiles new policies with what the minor version before its own knows,
// and the chart is for 1.30 and later.
var functionsOf129 = []string{
	"contains", "endsWith", "filter", "findAll", "has", "int", "join", "map", "matches", "min", "size", "startsWith",
}

var (
	celString = regexp.MustCompile(`r?'(\\.|[^'\\])*'|r?"(\\.|[^"\\])*"`)
	celCall   = regexp.MustCompile(`([A-Za-z_]\w*)\(`)
)

// TestPolicyKeepsToOldFunctions, since the API server of the other tests knows
// newer ones too.
func TestPolicyKeepsToOldFunctions(t *testing.T) {
	if !strings.Contains(read(t, "Chart.yaml"), `kubeVersion: ">=1.30.0-0"`) {
		t.Fatal("the chart is for other versions now, so functionsOf129 has to be")
	}
	called := map[string]bool{}
	for _, o := range objects(t, read(t, "files", "policies.yaml")) {
		if o.GetKind() != "ValidatingAdmissionPolicy" {
			continue
		}
		policy := decode[admissionv1.ValidatingAdmissionPolicy](t, o)
		var expressions []string
		for _, c := range policy.Spec.MatchConditions {
			expressions = append(expressions, c.Expression)
		}
		for _, v := range policy.Spec.Variables {
			expressions = append(expressions, v.Expression)
		}
		for _, v := range policy.Spec.Validations {
			expressions = append(expressions, v.Expression, v.MessageExpression)
		}
		for _, e := range expressions {
			for _, call := range celCall.FindAllStringSubmatch(celString.ReplaceAllString(e, "''"), -1) {
				called[call[1]] = true
			}
		}
	}
	if diff := cmp.Diff(functionsOf129, slices.Sorted(maps.Keys(called))); diff != "" {
		t.Errorf("functions known (-) and called (+):\n%s", diff)
	}
}

// TestChartsOwnClassesAreAdmitted: what the schema accepts, the policy does too.
func TestChartsOwnClassesAreAdmitted(t *testing.T) {
	c := withPolicy(t)
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, args...) {
				if o.GetKind() != "StorageClass" {
					continue
				}
				if err := c.Create(t.Context(), o, client.DryRunAll); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// class returns one with parameters, given as names and values.
func class(driver string, parameters ...string) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metaNamed("a"), Provisioner: driver, Parameters: map[string]string{}}
	for i := 0; i < len(parameters); i += 2 {
		c.Parameters[parameters[i]] = parameters[i+1]
	}
	return c
}

func onServer(parameters ...string) *storagev1.StorageClass {
	return class(nfsDriver, append([]string{"server", "nas.example.com", "share", "/export"}, parameters...)...)
}

func with(c *storagev1.StorageClass, options ...string) *storagev1.StorageClass {
	c.MountOptions = options
	return c
}
