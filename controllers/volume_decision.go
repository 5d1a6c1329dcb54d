package controllers

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

// volumeAction is what to do with a volume.
type volumeAction int

const (
	// volumeLeave: nothing to do.
	volumeLeave volumeAction = iota
	// volumeUndo: the volume was never bound and never will be; take back the
	// object and the storage, whatever the policy.
	volumeUndo
	// volumeReclaim: delete the storage, then the object.
	volumeReclaim
	// volumeProtect: add the finalizer that keeps the object until its storage
	// is deleted.
	volumeProtect
	// volumeUnprotect: remove that finalizer.
	volumeUnprotect
)

// decideVolume says what to do with volume, which one of our drivers made.
// claim is the claim that volume refers to by name, nil when there is none. For
// an action that destroys anything both must come from the API server, not
// from a cache.
//
// A volume was never bound when its phase is still Pending: kube-controller-manager
// and BindReconciler both write the volume's phase before they touch the claim.
func decideVolume(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) volumeAction {
	ref := volume.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return volumeLeave // not dynamically bound: an administrator's business
	}
	if volume.DeletionTimestamp != nil && !isProtected(volume) {
		return volumeLeave // ended, and going as soon as others let it
	}
	neverBound := volume.Status.Phase == corev1.VolumePending
	if claim != nil && claim.UID == ref.UID && !losesClaim(volume, claim) {
		if neverBound && volume.DeletionTimestamp != nil && claim.Spec.VolumeName == "" {
			return volumeUndo // nobody binds a volume that is being deleted; the claim gets another
		}
		return decideProtection(volume)
	}
	if neverBound {
		return volumeUndo
	}
	if volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return decideProtection(volume)
	}
	return volumeReclaim
}

// losesClaim reports whether claim, which volume was made for, is bound to
// another volume, for good. kube-controller-manager may have seen that first,
// and have called the volume Released; a volume that it calls Bound is left
// until it does.
func losesClaim(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && claim.Spec.VolumeName != volume.Name &&
		volume.Status.Phase != corev1.VolumeBound
}

// decideProtection keeps the finalizer in step with the reclaim policy, which
// administrators edit (sig-storage-lib-external-provisioner,
// handleProtectionFinalizer): Delete needs it once the volume is bound, any
// other policy must not have it.
func decideProtection(volume *corev1.PersistentVolume) volumeAction {
	has := isProtected(volume)
	needs := volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	switch {
	case has && !needs:
		return volumeUnprotect
	case needs && !has && volume.Status.Phase == corev1.VolumeBound && volume.DeletionTimestamp == nil:
		return volumeProtect
	}
	return volumeLeave
}

// isProtected reports whether volume carries our finalizer.
func isProtected(volume *corev1.PersistentVolume) bool {
	return slices.Contains(volume.Finalizers, volumehelpers.PVDeletionProtectionFinalizer)
}
