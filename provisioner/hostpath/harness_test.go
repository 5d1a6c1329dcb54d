package hostpath_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

const nodeName = "node-1"

// bench is a driver with two pools on this machine's disk.
type bench struct {
	t      *testing.T
	base   string // of the pool default
	ssd    string // of the pool ssd
	labels map[string]string
	quota  directory.Quota // nil for none
	driver *hostpath.Driver
	ctx    context.Context
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		t: t, base: t.TempDir(), ssd: t.TempDir(), ctx: t.Context(),
		labels: map[string]string{corev1.LabelHostname: "host-1", "zone": "a"},
	}
	b.driver = b.open()
	return b
}

func (b *bench) open() *hostpath.Driver {
	b.t.Helper()
	nodes, err := hostpath.NewLocal(node.Options{
		NodeName: nodeName,
		Pools:    map[string][]string{"default": {b.base}, "ssd": {b.ssd}},
		Quota:    b.quota,
		Log:      logr.Discard(),
	})
	must(b.t, err)
	driver, err := hostpath.New(hostpath.Options{
		Nodes: nodes,
		Node: func(_ context.Context, name string) (*corev1.Node, error) {
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: b.labels}}, nil
		},
		Log: logr.Discard(),
	})
	must(b.t, err)
	b.t.Cleanup(func() { driver.Close() })
	return driver
}

// restart replaces the driver by one that knows nothing.
func (b *bench) restart() {
	b.t.Helper()
	must(b.t, b.driver.Close())
	b.driver = b.open()
}

func (b *bench) provision(opts controller.ProvisionOptions) *corev1.PersistentVolume {
	b.t.Helper()
	volume, state, err := b.driver.Provision(b.ctx, opts)
	must(b.t, err)
	if state != controller.ProvisioningFinished {
		b.t.Errorf("state = %s", state)
	}
	return bound(volume, opts)
}

// bound adds what the controller adds before it creates the volume.
func bound(volume *corev1.PersistentVolume, opts controller.ProvisionOptions) *corev1.PersistentVolume {
	volume.Spec.ClaimRef = &corev1.ObjectReference{Namespace: opts.PVC.Namespace, Name: opts.PVC.Name, UID: opts.PVC.UID}
	return volume
}

func (b *bench) wantInfeasible(opts controller.ProvisionOptions, words ...string) {
	b.t.Helper()
	_, state, err := b.driver.Provision(b.ctx, opts)
	if !provisioner.IsInfeasible(err) || state != controller.ProvisioningFinished {
		b.t.Errorf("Provision = %s, %v, want an infeasible error", state, err)
		return
	}
	if len(err.Error()) > 1024 {
		b.t.Errorf("the error has %d bytes, an event has room for 1024", len(err.Error()))
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			b.t.Errorf("%v does not say %q", err, word)
		}
	}
}

func (b *bench) wantNothingMade() {
	b.t.Helper()
	for _, base := range []string{b.base, b.ssd} {
		entries, err := os.ReadDir(base)
		must(b.t, err)
		for _, e := range entries {
			if e.Name() != ".berth" {
				b.t.Errorf("%s was made", filepath.Join(base, e.Name()))
			}
		}
	}
}

// askFor is a claim for 1 GiB whose class has the parameters name, value, ….
func askFor(parameters ...string) controller.ProvisionOptions {
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "class"},
		Provisioner: hostpath.Name,
		Parameters:  map[string]string{},
	}
	for i := 0; i < len(parameters); i += 2 {
		class.Parameters[parameters[i]] = parameters[i+1]
	}
	return controller.ProvisionOptions{
		StorageClass:     class,
		PVName:           "pvc-1",
		SelectedNodeName: nodeName,
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "uid-1", Labels: map[string]string{"app": "db"}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("1Gi"),
				}},
			},
		},
	}
}

func with(opts controller.ProvisionOptions, change func(*controller.ProvisionOptions)) controller.ProvisionOptions {
	change(&opts)
	return opts
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
