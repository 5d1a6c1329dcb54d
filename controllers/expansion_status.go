package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// allocate writes into the claim that its volume is to get size, which quotas
// count from then on, and returns the claim as it is then. Nothing is written if
// the claim has changed since it was read: size is what it asks for, or is
// allocated by a call whose outcome is unknown.
//
// An API server without the feature RecoverVolumeExpansionFailure drops both
// fields. It refuses smaller requests too, so nothing is lost. Which it is shows in
// what comes back, each time anew: it may be updated meanwhile.
func (r *ExpansionReconciler) allocate(ctx context.Context, claim *corev1.PersistentVolumeClaim, size resource.Quantity) (*corev1.PersistentVolumeClaim, error) {
	written, err := r.patchClaimStatus(ctx, claim, map[string]any{
		"allocatedResources":        corev1.ResourceList{corev1.ResourceStorage: size},
		"allocatedResourceStatuses": storageStatus(corev1.PersistentVolumeClaimControllerResizeInProgress),
	})
	if err != nil {
		return claim, err
	}
	if back, ok := written.Status.AllocatedResources[corev1.ResourceStorage]; ok && back.Cmp(size) < 0 {
		return claim, fmt.Errorf("the API server keeps status.allocatedResources of claim %s/%s at %s, after %s was written: the volume is not grown uncounted",
			claim.Namespace, claim.Name, back.String(), size.String())
	}
	return written, nil
}

func storageStatus(status any) map[corev1.ResourceName]any {
	return map[corev1.ResourceName]any{corev1.ResourceStorage: status}
}

// condemn writes into the claim why its volume did not grow, unless it says so.
// Once it says that the expansion is infeasible, less may be allocated again.
func (r *ExpansionReconciler) condemn(ctx context.Context, claim *corev1.PersistentVolumeClaim, why error) error {
	status := map[string]any{}
	if condition, ok := resizeError(claim, clip(why.Error(), maxEventNote), metav1.NewTime(r.Clock.Now())); !ok {
		status["conditions"] = []any{condition}
	}
	const infeasible = corev1.PersistentVolumeClaimControllerResizeInfeasible
	if grantsNothing(why) && resizeStatus(claim) != infeasible {
		status["allocatedResourceStatuses"] = storageStatus(infeasible)
	}
	if len(status) == 0 {
		return nil
	}
	_, err := r.patchClaimStatus(ctx, claim, status)
	return err
}

// resizeError returns the condition that says why a volume did not grow, and
// whether the claim has it.
func resizeError(claim *corev1.PersistentVolumeClaim, why string, now metav1.Time) (corev1.PersistentVolumeClaimCondition, bool) {
	condition := corev1.PersistentVolumeClaimCondition{
		Type:               corev1.PersistentVolumeClaimControllerResizeError,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: now,
		Reason:             reasonVolumeResizeFailed,
		Message:            why,
	}
	for _, c := range claim.Status.Conditions {
		if c.Type != condition.Type || c.Status != condition.Status {
			continue
		}
		condition.LastTransitionTime = c.LastTransitionTime
		return condition, c.Reason == condition.Reason && c.Message == condition.Message
	}
	return condition, false
}

// patchVolume writes the new capacity into this very volume, and annotations.
func (r *ExpansionReconciler) patchVolume(ctx context.Context, volume *corev1.PersistentVolume, size resource.Quantity, annotations map[string]string) error {
	before := volume.DeepCopy()
	maps.Copy(volume.Annotations, annotations)
	volume.Spec.Capacity[corev1.ResourceStorage] = size
	return r.Client.Patch(ctx, volume, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// report writes into the claim what its volume has, and that nothing is left to
// do. What is allocated stays, since it is what the volume has now. Only the
// conditions of an expansion are touched.
func (r *ExpansionReconciler) report(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) error {
	status := map[string]any{"capacity": volume.Spec.Capacity}
	if size, ok := reportedAllocation(claim, volume); ok {
		status["allocatedResources"] = corev1.ResourceList{corev1.ResourceStorage: size}
	}
	if resizeStatus(claim) != "" {
		status["allocatedResourceStatuses"] = storageStatus(nil)
	}
	ended := []corev1.PersistentVolumeClaimConditionType{corev1.PersistentVolumeClaimControllerResizeError, corev1.PersistentVolumeClaimResizing}
	var removals []any
	for _, c := range claim.Status.Conditions {
		if slices.Contains(ended, c.Type) {
			removals = append(removals, map[string]any{"$patch": "delete", "type": c.Type})
		}
	}
	if len(removals) > 0 {
		status["conditions"] = removals
	}
	_, err := r.patchClaimStatus(ctx, claim, status)
	return err
}

// patchClaimStatus writes into the status of the claim, if that is still as it was
// read, and returns what the API server has then. It merges strategically, so
// that what others write stays.
func (r *ExpansionReconciler) patchClaimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, status map[string]any) (*corev1.PersistentVolumeClaim, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.ResourceVersion},
		"status":   status,
	})
	if err != nil {
		return nil, fmt.Errorf("encode the claim's status: %w", err)
	}
	// Nothing but what comes back: of fields that don't, nothing must be left.
	written := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: claim.Name}}
	if err := r.Client.Status().Patch(ctx, written, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		return nil, fmt.Errorf("write the claim's status: %w", err)
	}
	return written, nil
}
