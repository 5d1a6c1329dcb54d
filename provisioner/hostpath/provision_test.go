package hostpath_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/lib/oddfs"
)

// poolID reads the id of the pool in a directory.
func poolID(t *testing.T, base string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(base, ".berth", "pool.json"))
	must(t, err)
	var known struct{ ID string }
	must(t, json.Unmarshal(text, &known))
	return known.ID
}

func TestProvisionDescribesALocalVolume(t *testing.T) {
	b := newBench(t)
	opts := askFor()
	opts.StorageClass.MountOptions = []string{"noexec"}
	got, _, err := b.driver.Provision(b.ctx, opts)
	must(t, err)
	mode := corev1.PersistentVolumeFilesystem
	want := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pvc-1",
			Annotations: map[string]string{
				"berth.storage/driver":    "hostpath.berth.storage",
				"berth.storage/node":      nodeName,
				"berth.storage/pool":      "default",
				"berth.storage/pool-id":   poolID(t, b.base),
				"berth.storage/directory": b.base,
				"berth.storage/quota":     "none: this driver can't limit directories",
				"berth.storage/path":      "ns-claim-pvc-1",
				"berth.storage/on-delete": "delete",
				"berth.storage/claim":     "ns/claim",
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			MountOptions:                  []string{"noexec"},
			VolumeMode:                    &mode,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: filepath.Join(b.base, "ns-claim-pvc-1")},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"host-1"},
				}},
			}}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(got.Spec.Local.Path)
	must(t, err)
	if !info.IsDir() || info.Mode().Perm() != 0o770 {
		t.Errorf("mode = %v", info.Mode())
	}
}

func TestProvisionHonoursParameters(t *testing.T) {
	b := newBench(t)
	retain := corev1.PersistentVolumeReclaimRetain
	opts := askFor("pool", "ssd", "volumeType", "hostPath", "pathPattern", "${pvc.namespace}/${pvc.labels['app']}",
		"onDelete", "archive", "mode", "2775", "uid", "1234", "gid", "4321", "existing", "refuse")
	opts.StorageClass.ReclaimPolicy = &retain
	if os.Geteuid() != 0 {
		t.Skip("another owner needs root")
	}
	got, _, err := b.driver.Provision(b.ctx, opts)
	must(t, err)
	path := filepath.Join(b.ssd, "ns/db")
	exists := corev1.HostPathDirectory
	if diff := cmp.Diff(&corev1.HostPathVolumeSource{Path: path, Type: &exists}, got.Spec.HostPath); diff != "" {
		t.Error(diff)
	}
	if got.Spec.PersistentVolumeReclaimPolicy != retain || got.Annotations[hostpath.AnnPool] != "ssd" ||
		got.Annotations[request.AnnPath] != "ns/db" || got.Annotations[request.AnnOnDelete] != "archive" || got.Spec.NodeAffinity == nil {
		t.Errorf("volume = %+v", got)
	}
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	if st.Mode&0o7777 != 0o2775 || st.Uid != 1234 || st.Gid != 4321 {
		t.Errorf("mode %#o, owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	}
}

func TestBadParametersAreInfeasible(t *testing.T) {
	for _, test := range []struct {
		name, value string
		words       []string
	}{
		{"nope", "x", []string{"existing, gid, mode, onDelete, pathPattern, pool, quota, uid, volumeType"}},
		{"Pool", "x", []string{"no such parameter"}},
		{"volumeType", "nfs", []string{"local, hostPath"}},
		{"volumeType", "", []string{"local, hostPath"}},
		{"pathPattern", "../../etc", []string{"not a name"}},
		{"pathPattern", "", []string{"empty"}},
		{"pathPattern", "${pvc.uid}", []string{"unknown variable"}},
		{"pathPattern", "${pvc.labels['missing']}", []string{"pvc.labels['missing']"}},
		{"onDelete", "shred", []string{"delete, archive, retain"}},
		{"mode", "rwx", []string{"octal"}},
		{"mode", "0888", []string{"octal"}},
		{"mode", "10000", []string{"octal"}},
		{"mode", "-1", []string{"octal"}},
		{"mode", "0o770", []string{"octal"}},
		{"mode", "", []string{"octal"}},
		{"uid", "root", []string{"4294967294"}},
		{"uid", "-1", []string{"4294967294"}},
		{"uid", "4294967295", []string{"4294967294"}},
		{"gid", "4294967296", []string{"4294967294"}},
		{"gid", "0x10", []string{"4294967294"}},
		{"existing", "yes", []string{"refuse, adopt"}},
		{"quota", "hard", []string{"auto, required, none"}},
		{"quota", "required", []string{"can't limit directories"}},
	} {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			b := newBench(t)
			b.wantInfeasible(askFor(test.name, test.value), append(test.words, "StorageClass parameter "+test.name, test.value)...)
			b.wantNothingMade()
		})
	}
}

func TestClaimsThatADirectoryCantServeAreInfeasible(t *testing.T) {
	block, group := corev1.PersistentVolumeBlock, "snapshot.storage.k8s.io"
	for name, test := range map[string]struct {
		change func(*controller.ProvisionOptions)
		words  []string
	}{
		"selector": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}, []string{"spec.selector", "a=b"}},
		"block": {func(o *controller.ProvisionOptions) { o.PVC.Spec.VolumeMode = &block }, []string{"spec.volumeMode", "Filesystem"}},
		"data source": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
		}, []string{"spec.dataSource", "PersistentVolumeClaim/other"}},
		"data source of an unknown kind": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "snap"}
		}, []string{"spec.dataSourceRef", "VolumeSnapshot/snap"}},
		"shared": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteMany}
		}, []string{"spec.accessModes", "ReadWriteMany", "nfs.berth.storage"}},
		"read by many": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		}, []string{"ReadOnlyMany"}},
		"no size":       {func(o *controller.ProvisionOptions) { o.PVC.Spec.Resources.Requests = nil }, []string{"requests.storage"}},
		"size zero":     {setSize("0"), []string{"requests.storage"}},
		"size negative": {setSize("-1Gi"), []string{"requests.storage", "-1Gi"}},
		"size 16 EiB":   {setSize("16Ei"), []string{"9223372036854775807", "in all"}},
		"size 7 EiB":    {setSize("7Ei"), []string{"7Ei", "in all"}},
		"mount options of a hostPath": {func(o *controller.ProvisionOptions) {
			o.StorageClass.Parameters["volumeType"] = "hostPath"
			o.StorageClass.MountOptions = []string{"noexec"}
		}, []string{"mountOptions", "noexec"}},
		"topology": {func(o *controller.ProvisionOptions) { o.StorageClass.AllowedTopologies = topologies("zone", "b", "c") },
			[]string{"allowedTopologies", "zone in (b, c)", nodeName}},
		"topology, Immediate": {func(o *controller.ProvisionOptions) {
			o.SelectedNodeName = ""
			o.StorageClass.AllowedTopologies = topologies("rack", "a")
		}, []string{"allowedTopologies"}},
		"topology without expressions": {func(o *controller.ProvisionOptions) {
			o.StorageClass.AllowedTopologies = []corev1.TopologySelectorTerm{{}}
		}, []string{"allowedTopologies"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.wantInfeasible(with(askFor(), test.change), test.words...)
			b.wantNothingMade()
		})
	}
}

func setSize(size string) func(*controller.ProvisionOptions) {
	return func(o *controller.ProvisionOptions) {
		o.PVC.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	}
}

func topologies(key string, values ...string) []corev1.TopologySelectorTerm {
	return []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: key, Values: values}}}}
}

func TestImmediateTakesTheNodeThatMatches(t *testing.T) {
	b := newBench(t)
	opts := askFor()
	opts.SelectedNodeName = ""
	opts.StorageClass.AllowedTopologies = append(topologies("zone", "b"), topologies("zone", "x", "a")...)
	b.provision(opts)
}

func TestOncePodIsServed(t *testing.T) {
	b := newBench(t)
	opts := askFor()
	opts.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	got := b.provision(opts)
	if diff := cmp.Diff(opts.PVC.Spec.AccessModes, got.Spec.AccessModes); diff != "" {
		t.Error(diff)
	}
}

func TestAnotherNodeIsRescheduled(t *testing.T) {
	b := newBench(t)
	opts := askFor()
	opts.SelectedNodeName = "node-2"
	_, state, err := b.driver.Provision(b.ctx, opts)
	if state != controller.ProvisioningReschedule || err == nil || !strings.Contains(err.Error(), "node-2") {
		t.Errorf("Provision = %s, %v", state, err)
	}
	b.wantNothingMade()
}

func TestAffinityUsesTheLabelNotTheName(t *testing.T) {
	b := newBench(t)
	delete(b.labels, corev1.LabelHostname)
	_, _, err := b.driver.Provision(b.ctx, askFor())
	if err == nil || provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), corev1.LabelHostname) {
		t.Errorf("Provision without the label = %v", err)
	}
	b.wantNothingMade()
}

func TestUnknownPoolNamesTheFlag(t *testing.T) {
	b := newBench(t)
	_, _, err := b.driver.Provision(b.ctx, askFor("pool", "nvme"))
	if err == nil || !strings.Contains(err.Error(), "--pool nvme=") || !strings.Contains(err.Error(), "default, ssd") {
		t.Errorf("Provision = %v", err)
	}
}

func TestAPathChosenBeforeCounts(t *testing.T) {
	for name, change := range map[string]func(map[string]string){
		"label changed": func(labels map[string]string) { labels["app"] = "other" },
		"label removed": func(labels map[string]string) { delete(labels, "app") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			opts := askFor("pathPattern", "${pvc.labels['app']}")
			first := b.provision(opts)
			change(opts.PVC.Labels)
			b.restart()
			if diff := cmp.Diff(first, b.provision(opts)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEmptyPoolThatKubernetesKnowsIsRefused(t *testing.T) {
	for _, test := range []struct {
		inUse bool
		err   error
		want  bool
	}{{inUse: false, want: true}, {inUse: true}, {err: errors.New("the API server is down")}} {
		nodes, err := hostpath.NewLocal(node.Options{NodeName: nodeName, Pools: map[string][]string{"default": {t.TempDir()}}})
		must(t, err)
		driver, err := hostpath.New(hostpath.Options{
			Nodes: nodes,
			Node: func(context.Context, string) (*corev1.Node, error) {
				return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelHostname: "h"}}}, nil
			},
			InUse: func(context.Context, string, string, string) (bool, error) { return test.inUse, test.err },
		})
		must(t, err)
		_, _, err = driver.Provision(t.Context(), askFor())
		if (err == nil) != test.want || provisioner.IsInfeasible(err) {
			t.Errorf("%+v: Provision = %v", test, err)
		}
		must(t, driver.Close())
	}
}

func TestConflictsAreInfeasible(t *testing.T) {
	b := newBench(t)
	b.provision(askFor("pathPattern", "shared"))
	second := askFor("pathPattern", "shared")
	second.PVName, second.PVC.UID = "pvc-2", "uid-2"
	b.wantInfeasible(second, "StorageClass parameter pathPattern", "shared")
}

func TestClassWithoutPoliciesDeletes(t *testing.T) {
	b := newBench(t)
	opts := askFor()
	opts.StorageClass = &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "bare"}, Parameters: opts.StorageClass.Parameters}
	if got := b.provision(opts).Spec.PersistentVolumeReclaimPolicy; got != corev1.PersistentVolumeReclaimDelete {
		t.Errorf("reclaim policy = %s", got)
	}
}

func TestRightsThatTheFilesystemDoesNotGiveAreSaid(t *testing.T) {
	b := newBench(t)
	must(t, b.driver.Close())
	nodes, err := hostpath.NewLocal(node.Options{
		NodeName: nodeName, Pools: map[string][]string{"default": {b.base}}, Log: logr.Discard(),
		Filesystem: func(real directory.Filesystem) directory.Filesystem {
			return &oddfs.FS{Filesystem: real, MkdirMode: 0o777, Chmod: oddfs.Ignored}
		},
	})
	must(t, err)
	b.driver, err = hostpath.New(hostpath.Options{Nodes: nodes, Log: logr.Discard(), Node: func(_ context.Context, name string) (*corev1.Node, error) {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: b.labels}}, nil
	}})
	must(t, err)
	defer b.driver.Close()
	volume := b.provision(askFor("mode", "0750"))
	if got, want := volume.Annotations[request.AnnRights], "mode 0777 instead of 0750 (wider)"; got != want {
		t.Errorf("annotation %q, want %q", got, want)
	}
	want := "made a new directory; its size is not enforced: this driver can't limit directories; its directory has other rights than its class asks for: mode 0777 instead of 0750 (wider)"
	if got := b.driver.Notice(volume); got != want {
		t.Errorf("Notice = %q, want %q", got, want)
	}
}
