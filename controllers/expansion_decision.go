package controllers

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// expansionAction is what to do about the size of a claim and its volume.
type expansionAction int

const (
	// expansionLeave: nothing to do.
	expansionLeave expansionAction = iota
	// expansionGrow: the volume is smaller than what the claim asks for.
	expansionGrow
	// expansionReport: the volume is large enough, and the claim does not say
	// so, or says that it could not grow.
	expansionReport
)

// decideExpansion says what to do about claim and the volume that it names, as
// the API server has both.
//
// Whether the class allows it is not asked again: the API server took the
// request when it did (plugin/pkg/admission/storage/persistentvolume/resize),
// and what it took is finished, as external-resizer does. A smaller request than
// what the claim has is left alone; the API server refuses most of them.
func decideExpansion(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) expansionAction {
	ref := volume.Spec.ClaimRef
	switch {
	case claim.DeletionTimestamp != nil || volume.DeletionTimestamp != nil:
		return expansionLeave
	case claim.Status.Phase != corev1.ClaimBound || volume.Status.Phase != corev1.VolumeBound:
		return expansionLeave // its turn comes when the two are bound
	case ref == nil || ref.UID != claim.UID || claim.Spec.VolumeName != volume.Name:
		return expansionLeave
	case compareSizes(volume.Spec.Capacity, claim.Spec.Resources.Requests) < 0:
		return expansionGrow
	case wantsExpansion(claim):
		return expansionReport
	}
	return expansionLeave
}

// wantsExpansion reports whether a bound claim asks for more than it has, or
// says that it could not have it.
func wantsExpansion(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Status.Phase == corev1.ClaimBound &&
		(compareSizes(claim.Status.Capacity, claim.Spec.Resources.Requests) < 0 || expansionFailed(claim))
}

func expansionFailed(claim *corev1.PersistentVolumeClaim) bool {
	return slices.ContainsFunc(claim.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimControllerResizeError
	})
}

// compareSizes compares the storage of two lists, as Quantity.Cmp does.
func compareSizes(a, b corev1.ResourceList) int {
	one, other := a[corev1.ResourceStorage], b[corev1.ResourceStorage]
	return one.Cmp(other)
}
