package controllers_test

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// libraryProvisioner is a provisioner as one writes it for
// sig-storage-lib-external-provisioner: this file knows nothing of Berth.
type libraryProvisioner struct {
	mu      sync.Mutex
	volumes map[string]struct{}
}

var (
	_ controller.Provisioner      = &libraryProvisioner{}
	_ controller.Qualifier        = &libraryProvisioner{}
	_ controller.DeletionGuard    = &libraryProvisioner{}
	_ controller.BlockProvisioner = &libraryProvisioner{}
)

// The labels by which a libraryProvisioner is told to keep its hands off.
const (
	libraryNoProvision = "library.example.com/no-provision"
	libraryNoDelete    = "library.example.com/no-delete"
)

func (p *libraryProvisioner) Provision(_ context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes[options.PVName] = struct{}{}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			VolumeMode:                    options.PVC.Spec.VolumeMode,
			Capacity:                      options.PVC.Spec.Resources.Requests,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				NFS: &corev1.NFSVolumeSource{Server: "nfs.example.com", Path: "/" + options.PVName},
			},
		},
	}, controller.ProvisioningFinished, nil
}

func (p *libraryProvisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.volumes[volume.Name]; !known {
		return &controller.IgnoredError{Reason: "this provisioner did not make it"}
	}
	delete(p.volumes, volume.Name)
	return nil
}

func (p *libraryProvisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	_, no := claim.Labels[libraryNoProvision]
	return !no
}

func (p *libraryProvisioner) ShouldDelete(_ context.Context, volume *corev1.PersistentVolume) bool {
	_, no := volume.Labels[libraryNoDelete]
	return !no
}

func (p *libraryProvisioner) SupportsBlock(context.Context) bool { return true }

func (p *libraryProvisioner) has(volume string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.volumes[volume]
	return ok
}
