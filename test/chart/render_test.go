package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestLint(t *testing.T) {
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			if _, err := helm(t, append([]string{"lint", "--strict", "--kube-version", rendered, chart(t)}, args...)...); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRenderingTwiceGivesTheSame: a GitOps tool renders every few minutes, and
// must not see a change where there is none.
func TestRenderingTwiceGivesTheSame(t *testing.T) {
	for name, args := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			first, err := template(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			second, err := template(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(first, second); diff != "" {
				t.Error(diff)
			}
			byID(t, objects(t, first)) // no name is there twice
		})
	}
}

func TestMistakesInValuesAreExplained(t *testing.T) {
	for name, c := range map[string]struct {
		set  string
		want string
	}{
		"unknown key":                    {`nodePaths=[]`, "additional properties 'nodePaths' not allowed"},
		"unknown key of a part":          {`image.tga="1"`, "additional properties 'tga' not allowed"},
		"unknown key of a class":         {`storageClasses=[{"name":"a","driver":"hostpath","onDelete":"archive"}]`, "additional properties 'onDelete' not allowed"},
		"unknown parameter":              {`storageClasses=[{"name":"a","driver":"hostpath","parameters":{"path":"/etc"}}]`, "additional properties 'path' not allowed"},
		"parameter of the other driver":  {`storageClasses=[{"name":"a","driver":"nfs","parameters":{"pool":"x"}}]`, "additional properties 'pool' not allowed"},
		"class without driver":           {`storageClasses=[{"name":"a"}]`, "missing property 'driver'"},
		"unknown driver":                 {`storageClasses=[{"name":"a","driver":"iscsi"}]`, "value must be one of 'hostpath', 'nfs'"},
		"a mode that YAML has changed":   {`storageClasses=[{"name":"a","driver":"hostpath","parameters":{"mode":504}}]`, "got number, want string"},
		"reclaim policy":                 {`storageClasses=[{"name":"a","driver":"hostpath","reclaimPolicy":"Recycle"}]`, "value must be one of"},
		"pool without path":              {`pools=[{"name":"default"}]`, "missing property 'path'"},
		"relative path":                  {`pools=[{"name":"default","path":"data"}]`, "does not match pattern"},
		"no replicas at all":             {`replicaCount=-1`, "minimum"},
		"a duration without unit":        {`leaderElection.leaseDuration="15"`, "does not match pattern"},
		"a digest of something else":     {`image.digest="md5:1"`, "does not match pattern"},
		"server without export":          {`nfs.server="nas"`, "nfs.path has to say which directory"},
		"replicas that don't elect":      {`leaderElection.enabled=false`, "replicaCount has to be 1"},
		"cert-manager without issuer":    {`tls.source="certManager"`, "tls.certManager.issuerRef has to name an Issuer"},
		"certificates without Secrets":   {`tls.source="secrets"`, "has to name a Secret with tls.crt, tls.key and ca.crt"},
		"unknown source of certificates": {`tls.source="vault"`, "value must be one of"},
		"default that is no class":       {`defaultStorageClass="berth"`, "defaultStorageClass is berth, and no such class is made: name one of these classes: berth-hostpath"},
		"default that is left out":       {`defaultStorageClass="berth-nfs"`, "give nfs.server and nfs.path, without which that class is left out"},
		"export without server":          {`nfs.path="/export"`, "nfs.path or nfs.mountOptions is given without nfs.server: say which server"},
		"mount options without server":   {`nfs.mountOptions=["hard"]`, "nfs.path or nfs.mountOptions is given without nfs.server: say which server"},
		"server without class":           {`nfs.server="nas",storageClasses=[{"name":"a","driver":"nfs","parameters":{"server":"b","share":"/"}}]`, "nfs.server is given, and no class uses it: add {name: berth-nfs, driver: nfs} to storageClasses"},
		"monitors of nothing":            {`metrics.enabled=false,metrics.monitors.enabled=true`, "metrics.monitors.enabled is true and metrics.enabled is false"},
		"certificate for nothing":        {`metrics.enabled=false,metrics.certificateSecret="a"`, "metrics.certificateSecret is given and metrics.enabled is false"},
		"name of no certificate":         {`metrics.serverName="a.example"`, "metrics.serverName is given without metrics.certificateSecret"},
		"token for no monitor":           {`metrics.monitors.tokenSecret="a"`, "metrics.monitors.tokenSecret is given and metrics.monitors.enabled is false"},
		"no schema before the Lease's":   {`flowSchema.matchingPrecedence=1`, "minimum"},
		"a user by name":                 {`tests.runAsUser="root"`, "got string, want integer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := template(t, "--set-json", c.set)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// TestSchemaKnowsEveryValue: nothing in values.yaml is allowed by accident, and
// nothing is free-form but what Kubernetes itself checks.
func TestSchemaKnowsEveryValue(t *testing.T) {
	text, err := os.ReadFile(chart(t) + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	var open []string
	var walk func(path string, s map[string]any)
	walk = func(path string, s map[string]any) {
		if s["type"] == "object" && s["additionalProperties"] == nil {
			open = append(open, path)
		}
		properties, _ := s["properties"].(map[string]any)
		for name, p := range properties {
			walk(strings.TrimPrefix(path+"."+name, "."), p.(map[string]any))
		}
		if items, ok := s["items"].(map[string]any); ok {
			walk(path+"[]", items)
		}
	}
	walk("", schema)
	allowed := map[string]bool{"global": true, "storageClasses[].parameters": true} // the latter by driver
	for _, path := range []string{"controller", "agent"} {
		for _, name := range []string{
			"resources", "podSecurityContext", "securityContext", "tolerations[]", "affinity", "topologySpreadConstraints[]",
			"extraEnv[]", "extraVolumes[]", "extraVolumeMounts[]", "updateStrategy", "groups[].affinity", "groups[].tolerations[]",
		} {
			allowed[path+"."+name] = true
		}
	}
	for _, path := range []string{"storageClasses[].allowedTopologies[]", "networkPolicy.metricsFrom[]", "tests.tolerations[]"} {
		allowed[path] = true
	}
	for _, path := range open {
		if !allowed[path] {
			t.Errorf("%s takes any key", path)
		}
	}
}

func TestSecretsAreEmpty(t *testing.T) {
	secrets := 0
	for _, o := range render(t) {
		if o.GetKind() != "Secret" {
			continue
		}
		secrets++
		for _, field := range []string{"data", "stringData", "type"} {
			if _, found := o.Object[field]; found {
				t.Errorf("%s has %s, which an upgrade would write over what the controller wrote", id(o), field)
			}
		}
	}
	if secrets == 0 {
		t.Error("no Secrets")
	}
}

func TestClassesAreThoseOfTheValues(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"default":                  {nil, []string{"berth-hostpath hostpath.berth.storage WaitForFirstConsumer map[] []"}},
		"with a server":            {[]string{"--set", "nfs.server=nas,nfs.path=/e"}, []string{"berth-hostpath hostpath.berth.storage WaitForFirstConsumer map[] []", "berth-nfs nfs.berth.storage Immediate map[mode:0777 server:nas share:/e] []"}},
		"one of them the default":  {[]string{"--set", "nfs.server=nas,nfs.path=/e,nfs.mountOptions={hard},defaultStorageClass=berth-nfs"}, []string{"berth-hostpath hostpath.berth.storage WaitForFirstConsumer map[] []", "berth-nfs nfs.berth.storage Immediate map[mode:0777 server:nas share:/e] [hard] default"}},
		"no agents":                {[]string{"--values", "testdata/nfs-only.yaml"}, []string{"berth-nfs nfs.berth.storage Immediate map[mode:0777 server:nas.example.com share:/export/k8s] [] default"}},
		"none":                     {[]string{"--set-json", "storageClasses=[]"}, nil},
		"numbers as people write":  {[]string{"--set-json", `storageClasses=[{"name":"a","driver":"hostpath","parameters":{"uid":4294967294,"gid":"007"}}]`}, []string{"a hostpath.berth.storage Immediate map[gid:007 uid:4294967294] []"}},
		"two servers, one install": {[]string{"--set-json", `storageClasses=[{"name":"a","driver":"nfs","parameters":{"server":"a","share":"/"}},{"name":"b","driver":"nfs","parameters":{"server":"b","share":"/"}}]`}, []string{"a nfs.berth.storage Immediate map[server:a share:/] []", "b nfs.berth.storage Immediate map[server:b share:/] []"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, o := range render(t, c.args...) {
				if o.GetKind() != "StorageClass" {
					continue
				}
				class := decode[storagev1.StorageClass](t, o)
				text := fmt.Sprint(class.Name, " ", class.Provisioner, " ", *class.VolumeBindingMode, " ", class.Parameters, " ", class.MountOptions)
				if class.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
					text += " default"
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRightsShrinkWithTheFeatures: who turns something off grants nothing for it.
func TestRightsShrinkWithTheFeatures(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		absent []string
	}{
		"no agents":          {[]string{"--values", "testdata/nfs-only.yaml"}, []string{"secrets", "endpointslices", "csidrivers", "csistoragecapacities"}},
		"other certificates": {[]string{"--values", "testdata/secrets.yaml"}, []string{"secrets"}},
		"little":             {[]string{"--values", "testdata/small.yaml"}, []string{"leases", "tokenreviews", "subjectaccessreviews"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, c.args...) {
				if o.GetKind() != "Role" && o.GetKind() != "ClusterRole" {
					continue
				}
				for _, rule := range decode[rbacv1.ClusterRole](t, o).Rules {
					for _, resource := range rule.Resources {
						for _, absent := range c.absent {
							if resource == absent {
								t.Errorf("%s grants %v on %s", id(o), rule.Verbs, resource)
							}
						}
					}
				}
			}
		})
	}
}

// TestOnlyNamedSecretsAndLeases: what else is in the namespace, kube-scheduler's
// Lease for instance when that is kube-system, is not Berth's to read or change.
func TestOnlyNamedSecretsAndLeases(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range render(t, "--namespace", "kube-system") {
		if o.GetKind() != "Role" && o.GetKind() != "ClusterRole" {
			continue
		}
		for _, rule := range decode[rbacv1.ClusterRole](t, o).Rules {
			for _, resource := range rule.Resources {
				if resource != "secrets" && resource != "leases" || slices.Equal(rule.Verbs, []string{"create"}) {
					continue
				}
				seen[resource] = true
				if len(rule.ResourceNames) == 0 {
					t.Errorf("%s grants %v on all %s", id(o), rule.Verbs, resource)
				}
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("there are rules for %v only", seen)
	}
}

// TestSecretsOfTheRoleAreThoseOfTheChart, whatever the release is called.
func TestSecretsOfTheRoleAreThoseOfTheChart(t *testing.T) {
	made := map[string]bool{}
	all := render(t, "--values", "testdata/everything.yaml")
	for _, o := range all {
		if o.GetKind() == "Secret" {
			made[o.GetName()] = true
		}
	}
	granted := map[string]bool{}
	for _, o := range all {
		if o.GetKind() != "Role" {
			continue
		}
		for _, rule := range decode[rbacv1.Role](t, o).Rules {
			if rule.Resources[0] == "secrets" {
				for _, name := range rule.ResourceNames {
					granted[name] = true
				}
			}
		}
	}
	if diff := cmp.Diff(made, granted); diff != "" {
		t.Errorf("Secrets made (-) and granted (+):\n%s", diff)
	}
}

func TestEveryDirectoryOfAPoolIsOneMount(t *testing.T) {
	o := byID(t, render(t, "--values", "testdata/everything.yaml"))["DaemonSet/storage-agent"]
	pod := podTemplate(t, o).Spec
	got := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			got[v.Name] = v.HostPath.Path + " " + string(*v.HostPath.Type)
		}
	}
	want := map[string]string{
		"pool-default": "/var/lib/berth DirectoryOrCreate",
		"pool-ssd":     "/mnt/ssd-1 Directory",
		"pool-ssd-2":   "/mnt/ssd-2 Directory",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, mount := range pod.Containers[0].VolumeMounts {
		if path, found := want[mount.Name]; found && !strings.HasPrefix(path, mount.MountPath+" ") {
			t.Errorf("%s is mounted at %s, not where it is on the node", mount.Name, mount.MountPath)
		}
	}
	if capabilities := pod.Containers[0].SecurityContext.Capabilities.Add; len(capabilities) != 4 {
		t.Errorf("without quotas agents have %v", capabilities)
	}
}

// decode reads an object as what it is.
func decode[T any](t *testing.T, o *unstructured.Unstructured) *T {
	t.Helper()
	into := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, into, true); err != nil {
		t.Fatalf("%s: %v", id(o), err)
	}
	return into
}

// podTemplate returns that of a Deployment or a DaemonSet.
func podTemplate(t *testing.T, o *unstructured.Unstructured) *corev1.PodTemplateSpec {
	t.Helper()
	template, found, err := unstructured.NestedMap(o.Object, "spec", "template")
	if err != nil || !found {
		t.Fatalf("%s has no spec.template: %v", id(o), err)
	}
	return decode[corev1.PodTemplateSpec](t, &unstructured.Unstructured{Object: template})
}
