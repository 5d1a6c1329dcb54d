package controllers

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/berth-storage/berth/provisioner"
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

// asksForMore passes claims that want expansion, and of their changes those that
// may change what becomes of it: that a condition of the claim was written must
// not cut the wait for the next attempt short.
func asksForMore() predicate.Predicate {
	wants := func(o client.Object) bool {
		claim, ok := o.(*corev1.PersistentVolumeClaim)
		return ok && wantsExpansion(claim)
	}
	funcs := predicate.NewPredicateFuncs(wants)
	funcs.UpdateFunc = func(e event.UpdateEvent) bool {
		return wants(e.ObjectNew) && (!wants(e.ObjectOld) || !sameButForConditions(e.ObjectOld, e.ObjectNew))
	}
	return funcs
}

// sameButForConditions reports whether two claims differ in conditions, and in
// nothing else that an expansion depends on.
func sameButForConditions(before, after client.Object) bool {
	a, b := before.(*corev1.PersistentVolumeClaim), after.(*corev1.PersistentVolumeClaim)
	return !equality.Semantic.DeepEqual(a.Status.Conditions, b.Status.Conditions) &&
		a.UID == b.UID &&
		a.DeletionTimestamp.Equal(b.DeletionTimestamp) &&
		equality.Semantic.DeepEqual(a.Spec, b.Spec) &&
		equality.Semantic.DeepEqual(a.Status.Capacity, b.Status.Capacity)
}

// refusedExpansion reports whether err is an answer, rather than that there was
// none or that it was given up: the codes are those that the CSI specification has for
// calls that may still be under way.
func refusedExpansion(err error) bool {
	if _, unavailable := provisioner.RetryAfter(err); unavailable {
		return false
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.Aborted:
		return false
	}
	return true
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
