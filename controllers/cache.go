package controllers

import (
	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CacheOptions returns what the manager's cache needs to hold for the
// reconcilers of this package, and nothing else: an object that is none of
// Berth's business costs its name, and no cached object may be written back.
//
// serves tells whether a driver is registered under a provisioner's name.
func CacheOptions(serves func(string) bool) cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.PersistentVolumeClaim{}: {Transform: slimClaim},
			&corev1.PersistentVolume{}:      {Transform: slimVolume(serves)},
		},
	}
}

func slimClaim(o any) (any, error) {
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return o, nil
	}
	claim.ManagedFields = nil
	delete(claim.Annotations, corev1.LastAppliedConfigAnnotation)
	if claim.Spec.VolumeName != "" && !wantsExpansion(claim) {
		claim.Labels, claim.Annotations, claim.OwnerReferences = nil, nil, nil
		claim.Spec = corev1.PersistentVolumeClaimSpec{
			VolumeName:       claim.Spec.VolumeName,
			StorageClassName: claim.Spec.StorageClassName,
		}
		slim := corev1.PersistentVolumeClaimStatus{Phase: claim.Status.Phase}
		if isCalledUnused(claim) {
			slim.Conditions = calledUnused
		}
		claim.Status = slim
	}
	return claim, nil
}

// calledUnused is what cached claims have left of their conditions, all the same one.
var calledUnused = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimUnused}}

func slimVolume(serves func(string) bool) toolscache.TransformFunc {
	return func(o any) (any, error) {
		volume, ok := o.(*corev1.PersistentVolume)
		if !ok {
			return o, nil
		}
		volume.ManagedFields = nil
		delete(volume.Annotations, corev1.LastAppliedConfigAnnotation)
		if isTaken(volume) && !serves(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]) {
			volume.Spec = slimSpec(volume.Spec)
			volume.Labels, volume.Annotations, volume.OwnerReferences = nil, slimAnnotations(volume), nil
		}
		return volume, nil
	}
}

// slimAnnotations keeps whether a volume that names a directory was provisioned.
func slimAnnotations(volume *corev1.PersistentVolume) map[string]string {
	by := volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]
	if by == "" || pathOf(volume) == "" {
		return nil
	}
	return map[string]string{volumehelpers.AnnDynamicallyProvisioned: by}
}

// slimSpec keeps whose a volume is and which directory it names, on which nodes:
// what others name is not removed.
func slimSpec(spec corev1.PersistentVolumeSpec) corev1.PersistentVolumeSpec {
	slim := corev1.PersistentVolumeSpec{ClaimRef: spec.ClaimRef}
	switch source := spec.PersistentVolumeSource; {
	case source.Local != nil:
		slim.Local = &corev1.LocalVolumeSource{Path: source.Local.Path}
	case source.HostPath != nil:
		slim.HostPath = &corev1.HostPathVolumeSource{Path: source.HostPath.Path}
	case source.NFS != nil:
		slim.NFS = &corev1.NFSVolumeSource{Server: source.NFS.Server, Path: source.NFS.Path}
		return slim
	default:
		return slim
	}
	slim.NodeAffinity = spec.NodeAffinity
	return slim
}

// isTaken reports whether no unbound claim can be given volume.
func isTaken(volume *corev1.PersistentVolume) bool {
	switch volume.Status.Phase {
	case corev1.VolumeBound, corev1.VolumeReleased, corev1.VolumeFailed:
		return true
	}
	return false
}
