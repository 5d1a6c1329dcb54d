package controllers

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
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
	// expansionGrow: the volume is smaller than it is to be.
	expansionGrow
	// expansionReport: the volume is large enough, and the claim does not say
	// so, or says that it could not grow.
	expansionReport
)

// expansionStep is the next step of an expansion.
type expansionStep struct {
	action expansionAction
	// size is what the volume is to have (expansionGrow).
	size resource.Quantity
	// allocated says that the claim says so already: that this very size is
	// allocated, and that the expansion to it is in progress.
	allocated bool
}

// decideExpansion says what to do about claim and the volume that it names, as
// the API server has both.
//
// Whether the class allows it is not asked again: the API server took the
// request when it did (plugin/pkg/admission/storage/persistentvolume/resize),
// and what it took is finished, as external-resizer does.
//
// A request may be lowered again, as long as it is more than status.capacity. So
// quotas count status.allocatedResources, if that is more, and a size is written
// there before the storage is asked for it. From then on the storage may have it:
// it is carried through, whatever the claim asks for by now, until it is done or
// was refused.
func decideExpansion(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) expansionStep {
	if !areBound(claim, volume) || !wantsExpansion(claim) {
		return expansionStep{}
	}
	has, wanted := volume.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	state := resizeStatus(claim)
	allocated, isAllocated := claim.Status.AllocatedResources[corev1.ResourceStorage]
	switch {
	case isAllocated && allocated.Cmp(has) > 0 && state != corev1.PersistentVolumeClaimControllerResizeInfeasible:
		return expansionStep{expansionGrow, allocated, state == corev1.PersistentVolumeClaimControllerResizeInProgress}
	case compareSizes(claim.Status.Capacity, volume.Spec.Capacity) < 0:
		return expansionStep{action: expansionReport} // first what it has, which no request may be below
	case wanted.Cmp(has) > 0:
		return expansionStep{action: expansionGrow, size: wanted}
	}
	return expansionStep{action: expansionReport}
}

// areBound reports whether claim and volume are bound to each other, and to stay.
func areBound(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) bool {
	ref := volume.Spec.ClaimRef
	return claim.DeletionTimestamp == nil && volume.DeletionTimestamp == nil &&
		claim.Status.Phase == corev1.ClaimBound && volume.Status.Phase == corev1.VolumeBound &&
		ref != nil && ref.UID == claim.UID && claim.Spec.VolumeName == volume.Name
}

// wantsExpansion reports whether a bound claim asks for more than it has, or
// says that an expansion is not over, or failed.
func wantsExpansion(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Status.Phase == corev1.ClaimBound &&
		(compareSizes(claim.Status.Capacity, claim.Spec.Resources.Requests) < 0 || isResizing(claim) || expansionFailed(claim))
}

// resizeStatus is how far the claim says that its expansion has come.
func resizeStatus(claim *corev1.PersistentVolumeClaim) corev1.ClaimResourceStatus {
	return claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
}

// isResizing reports whether the claim says that whoever makes volumes larger has
// begun to; what kubelet has to do with that is not of this controller's volumes.
func isResizing(claim *corev1.PersistentVolumeClaim) bool {
	switch resizeStatus(claim) {
	case corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible:
		return true
	}
	return false
}

// reportedAllocation returns what to write into status.allocatedResources together
// with the volume's capacity, and whether to write it. What quotas count is never
// less than what the volume has, and no more of what was refused.
func reportedAllocation(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) (resource.Quantity, bool) {
	has := volume.Spec.Capacity[corev1.ResourceStorage]
	allocated, isAllocated := claim.Status.AllocatedResources[corev1.ResourceStorage]
	capacity := claim.Status.Capacity[corev1.ResourceStorage]
	over := isAllocated && allocated.Cmp(has) > 0
	grants := capacity.Cmp(has) < 0 && (!isAllocated || allocated.Cmp(has) < 0)
	return has, over || grants
}

// asksForMore passes claims that want expansion, and of their changes those that
// may change what becomes of it: nothing else that is written into a claim, by
// this controller or by the claim's owner, must cut the wait for the next attempt
// short.
func asksForMore() predicate.Predicate {
	wants := func(o client.Object) bool {
		claim, ok := o.(*corev1.PersistentVolumeClaim)
		return ok && wantsExpansion(claim)
	}
	funcs := predicate.NewPredicateFuncs(wants)
	funcs.UpdateFunc = func(e event.UpdateEvent) bool {
		again := e.ObjectOld.GetResourceVersion() == e.ObjectNew.GetResourceVersion()
		return wants(e.ObjectNew) && (again || !wants(e.ObjectOld) || !sameForExpansion(e.ObjectOld, e.ObjectNew))
	}
	return funcs
}

// sameForExpansion reports whether two claims do not differ in what an expansion
// depends on.
func sameForExpansion(before, after client.Object) bool {
	a, b := before.(*corev1.PersistentVolumeClaim), after.(*corev1.PersistentVolumeClaim)
	return a.UID == b.UID &&
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

// grantsNothing reports whether err says that the volume was not made larger, and
// will not be, as provisioner.Expander has it: only then may less be allocated.
func grantsNothing(err error) bool {
	return refusedExpansion(err) && (provisioner.IsInfeasible(err) || status.Code(err) == codes.ResourceExhausted)
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
