package controllers_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

const (
	nodeKey = "example.com/node"
	gib     = int64(1 << 30)
)

// nodeDriver is a memoryDriver whose storage is on nodes, each with so much
// room.
type nodeDriver struct {
	*memoryDriver

	mu      sync.Mutex
	free    map[string]int64
	taken   map[string]nodeShare
	down    map[string]bool
	stalls  time.Duration
	asked   map[string]int
	waited  map[string]int
	onAsked func(node string)
}

// nodeShare is what a volume takes of a node.
type nodeShare struct {
	node string
	size int64
}

// newNodeDriver returns a driver with that much room on each node.
func newNodeDriver(free map[string]int64) *nodeDriver {
	return &nodeDriver{memoryDriver: newMemoryDriver(), free: free, taken: map[string]nodeShare{}, down: map[string]bool{}, asked: map[string]int{}, waited: map[string]int{}}
}

// SetFree has node have that much room.
func (d *nodeDriver) SetFree(node string, free int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free[node] = free
}

// RemoveNode has the driver have no storage on node any more.
func (d *nodeDriver) RemoveNode(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.free, node)
}

// SetDown has the calls about node fail after they have stalled for so long.
func (d *nodeDriver) SetDown(node string, down bool, stalls time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down[node], d.stalls = down, stalls
}

// OnAsked has f called before Capacity answers.
func (d *nodeDriver) OnAsked(f func(node string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onAsked = f
}

// Asked returns how often Capacity was asked about node.
func (d *nodeDriver) Asked(node string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[node]
}

// reach fails when node is down.
func (d *nodeDriver) reach(ctx context.Context, node string) error {
	d.mu.Lock()
	down, stalls := d.down[node], d.stalls
	if down {
		d.waited[node]++
	}
	d.mu.Unlock()
	if !down {
		return nil
	}
	select {
	case <-time.After(stalls):
	case <-ctx.Done():
	}
	return &provisioner.UnavailableError{RetryAfter: time.Second, Err: fmt.Errorf("node %s is down", node)}
}

// waits returns a function that reads how many calls have waited for node.
func (d *nodeDriver) waits(node string) func() int {
	return func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.waited[node]
	}
}

// NodeOf implements provisioner.NodeLocal.
func (d *nodeDriver) NodeOf(volume *corev1.PersistentVolume) string {
	return volume.Annotations[nodeKey]
}

// Nodes implements provisioner.NodeLocal.
func (d *nodeDriver) Nodes(context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.free)), nil
}

// Capacity implements provisioner.NodeLocal.
func (d *nodeDriver) Capacity(ctx context.Context, class *storagev1.StorageClass, node string) (provisioner.Capacity, error) {
	d.mu.Lock()
	d.asked[node]++
	hook := d.onAsked
	d.mu.Unlock()
	if hook != nil {
		hook(node)
	}
	if problem := class.Parameters["problem"]; problem != "" {
		return provisioner.Capacity{}, provisioner.Infeasible("StorageClass parameter problem", problem, "remove it")
	}
	if err := d.reach(ctx, node); err != nil {
		return provisioner.Capacity{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return provisioner.Capacity{Available: d.free[node], MaximumVolumeSize: d.free[node]}, nil
}

func (d *nodeDriver) Provision(ctx context.Context, options libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	if problem := options.StorageClass.Parameters["problem"]; problem != "" {
		return nil, libcontroller.ProvisioningFinished, provisioner.Infeasible("StorageClass parameter problem", problem, "remove it")
	}
	size := options.PVC.Spec.Resources.Requests.Storage().Value()
	node := options.SelectedNodeName
	if !d.take(options.PVName, nodeShare{node: node, size: size}) {
		return nil, libcontroller.ProvisioningReschedule, fmt.Errorf("no room on %s", node)
	}
	volume, state, err := d.memoryDriver.Provision(ctx, options)
	if err != nil {
		return nil, state, err
	}
	metav1.SetMetaDataAnnotation(&volume.ObjectMeta, nodeKey, node)
	volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{hostnameOf(node)}}},
	}}}}
	return volume, state, nil
}

func (d *nodeDriver) take(volume string, share nodeShare) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, has := d.taken[volume]; has {
		return true
	}
	if d.free[share.node] < share.size {
		return false
	}
	d.free[share.node] -= share.size
	d.taken[volume] = share
	return true
}

func (d *nodeDriver) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	if err := d.reach(ctx, d.NodeOf(volume)); err != nil {
		return err
	}
	if err := d.memoryDriver.Delete(ctx, volume); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	share := d.taken[volume.Name]
	delete(d.taken, volume.Name)
	if _, has := d.free[share.node]; has {
		d.free[share.node] += share.size
	}
	return nil
}
