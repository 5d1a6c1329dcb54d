package controllers_test

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

// memoryDriver is a driver whose storage is a map. It records its calls, and
// does what a test tells it instead of succeeding.
type memoryDriver struct {
	mu         sync.Mutex
	storage    map[string]memoryStorage
	provisions []provisionCall
	deletes    []string
	provision  func(context.Context, libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error)
	remove     func(context.Context, *corev1.PersistentVolume) error
	finish     func(*corev1.PersistentVolume)
	expansions []int64
	expand     func(context.Context, int64) error
	unread     []error
}

type memoryStorage struct {
	record provisioner.Record
	data   bool
}

type provisionCall struct {
	at      time.Time
	options libcontroller.ProvisionOptions
}

func newMemoryDriver() *memoryDriver {
	return &memoryDriver{storage: map[string]memoryStorage{}}
}

// OnProvision has every Provision from now on do what f says; nil to succeed.
func (d *memoryDriver) OnProvision(f func(context.Context, libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.provision = f
}

// FailProvision has every Provision from now on return err, nil to succeed.
func (d *memoryDriver) FailProvision(state libcontroller.ProvisioningState, err error) {
	d.OnProvision(func(context.Context, libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error) {
		return state, err
	})
}

// HoldProvision has every Provision wait from now on. It returns a channel that
// tells of the calls that wait, and a function that lets all of them go on.
func (d *memoryDriver) HoldProvision() (entered <-chan string, release func()) {
	calls, gate := make(chan string, 100), make(chan struct{})
	d.OnProvision(func(ctx context.Context, options libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error) {
		calls <- options.PVName
		select {
		case <-gate:
			return libcontroller.ProvisioningFinished, nil
		case <-ctx.Done():
			return libcontroller.ProvisioningFinished, ctx.Err()
		}
	})
	return calls, sync.OnceFunc(func() { close(gate) })
}

// OnDelete has every Delete from now on do what f says first; nil for nothing.
func (d *memoryDriver) OnDelete(f func(context.Context, *corev1.PersistentVolume) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remove = f
}

// OnFinish has f change every volume before Provision returns it.
func (d *memoryDriver) OnFinish(f func(*corev1.PersistentVolume)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finish = f
}

// OnExpand has every Expand from now on do what f says; nil to succeed.
func (d *memoryDriver) OnExpand(f func(ctx context.Context, size int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expand = f
}

// Expansions returns the sizes Expand was called for.
func (d *memoryDriver) Expansions() []int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.expansions)
}

// Expand implements provisioner.Expander.
func (d *memoryDriver) Expand(ctx context.Context, _ *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	d.mu.Lock()
	d.expansions = append(d.expansions, size)
	hook := d.expand
	d.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, size); err != nil {
			return provisioner.Expansion{}, err
		}
	}
	return provisioner.Expansion{Note: "memory is cheap", Annotations: map[string]string{"memory/size": fmt.Sprint(size)}}, nil
}

// Provisions returns the calls of Provision so far.
func (d *memoryDriver) Provisions() []provisionCall {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.provisions)
}

// Deletes returns the names of the volumes Delete was called for.
func (d *memoryDriver) Deletes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.deletes)
}

// Stored returns the names of the volumes there is storage for, sorted.
func (d *memoryDriver) Stored() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.storage))
}

// Store adds storage that no call of Provision made.
func (d *memoryDriver) Store(record provisioner.Record, data bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.storage[keyOf(record)] = memoryStorage{record: record, data: data}
}

// keyOf is the name of the volume, and its place unless that is the usual one.
func keyOf(record provisioner.Record) string {
	if record.Place == "" {
		return record.Volume
	}
	return record.Volume + "@" + record.Place
}

// FailVolumes has Volumes yield errors, besides what there is.
func (d *memoryDriver) FailVolumes(errs ...error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unread = errs
}

func (d *memoryDriver) Provision(ctx context.Context, options libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	d.mu.Lock()
	d.provisions = append(d.provisions, provisionCall{at: time.Now(), options: options})
	hook, finish := d.provision, d.finish
	d.mu.Unlock()
	if hook != nil {
		if state, err := hook(ctx, options); err != nil {
			return nil, state, err
		}
	}
	d.Store(provisioner.Record{
		Volume:   options.PVName,
		Claim:    types.NamespacedName{Namespace: options.PVC.Namespace, Name: options.PVC.Name},
		ClaimUID: options.PVC.UID,
		Created:  time.Now(),
	}, false)
	volume := volumeFor(options)
	if finish != nil {
		finish(volume)
	}
	return volume, libcontroller.ProvisioningFinished, nil
}

func (d *memoryDriver) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	d.mu.Lock()
	d.deletes = append(d.deletes, volume.Name)
	hook := d.remove
	d.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, volume); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.storage, volume.Name)
	return nil
}

// Volumes implements provisioner.Inventory.
func (d *memoryDriver) Volumes(context.Context) iter.Seq2[provisioner.Record, error] {
	d.mu.Lock()
	storage, unread := maps.Clone(d.storage), d.unread
	d.mu.Unlock()
	return func(yield func(provisioner.Record, error) bool) {
		for _, err := range unread {
			if !yield(provisioner.Record{}, err) {
				return
			}
		}
		for _, s := range storage {
			if !yield(s.record, nil) {
				return
			}
		}
	}
}

// RecordOf implements provisioner.Inventory.
func (d *memoryDriver) RecordOf(volume *corev1.PersistentVolume) provisioner.Record {
	record := provisioner.Record{Volume: volume.Name, Pool: volume.Annotations[poolKey]}
	if source := volume.Spec.HostPath; source != nil {
		record.Path = source.Path
	}
	return record
}

// poolKey is on volumes that say which pool they lie in.
const poolKey = "example.com/pool"

// Discard implements provisioner.Inventory.
func (d *memoryDriver) Discard(_ context.Context, record provisioner.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.storage[keyOf(record)].data {
		return provisioner.ErrNotEmpty
	}
	delete(d.storage, keyOf(record))
	return nil
}

// volumeFor returns what a well-behaved driver returns for options.
func volumeFor(options libcontroller.ProvisionOptions) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      options.PVC.Spec.Resources.Requests,
			AccessModes:                   options.PVC.Spec.AccessModes,
			VolumeMode:                    options.PVC.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			MountOptions:                  options.StorageClass.MountOptions,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/nowhere/" + options.PVName}},
		},
	}
}
