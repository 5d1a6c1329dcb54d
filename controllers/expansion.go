package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// ExpansionReconciler makes volumes larger when their claims ask for it: the
// driver makes room, then the volume's capacity is written, then the claim's.
// Each step can be repeated, and a crash between two leaves what the next
// attempt finishes. kube-controller-manager does no more for such volumes than
// to say that somebody else will (event ExternalExpanding), and the volumes
// need nothing from kubelet.
type ExpansionReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server.
	APIReader client.Reader
	// Drivers that are a provisioner.Expander are asked.
	Drivers *provisioner.Registry
	// Events is where events about claims go.
	Events events.EventRecorder
	// Metrics counts expansions.
	Metrics *Metrics
	// Clock is the time of retries.
	Clock clock.Clock

	infeasible *infeasibleClaims
}

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch

// SetupWithManager registers the reconciler, with at most workers claims in
// work at a time.
func (r *ExpansionReconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if r.Client == nil || r.APIReader == nil || r.Drivers == nil || r.Events == nil || r.Metrics == nil || r.Clock == nil {
		return fmt.Errorf("set up expansion reconciler: Client, APIReader, Drivers, Events, Metrics and Clock are required")
	}
	r.infeasible = newInfeasibleClaims(r.Clock, maxRetry)
	return ctrl.NewControllerManagedBy(mgr).
		Named("expansion").
		Watches(&corev1.PersistentVolumeClaim{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(asksForMore())).
		WithOptions(controllerOptions(mgr, "claim", workers)).
		Complete(newPatient(r))
}

// Reconcile takes one claim's expansion as far as it goes.
func (r *ExpansionReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	cached := &corev1.PersistentVolumeClaim{}
	if err := r.Client.Get(ctx, req.NamespacedName, cached); err != nil {
		r.infeasible.Forget(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !wantsExpansion(cached) || !r.isOurs(ctx, cached) {
		return reconcile.Result{}, nil
	}
	claim, volume := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	if err := r.APIReader.Get(ctx, req.NamespacedName, claim); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if err := r.APIReader.Get(ctx, types.NamespacedName{Name: claim.Spec.VolumeName}, volume); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	result, err := r.expand(ctx, claim, volume)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: minRetry}, nil // somebody wrote meanwhile: look again
	}
	return result, client.IgnoreNotFound(err)
}

// isOurs reports whether one of our drivers made the claim's volume.
func (r *ExpansionReconciler) isOurs(ctx context.Context, claim *corev1.PersistentVolumeClaim) bool {
	volume := &corev1.PersistentVolume{}
	if err := r.Client.Get(ctx, types.NamespacedName{Name: claim.Spec.VolumeName}, volume); err != nil {
		return !apierrors.IsNotFound(err) // what the API server says counts
	}
	return r.Drivers.Serves(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
}

func (r *ExpansionReconciler) expand(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) (reconcile.Result, error) {
	driver, ok := r.Drivers.Get(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	if !ok {
		return reconcile.Result{}, nil
	}
	switch decideExpansion(claim, volume) {
	case expansionGrow:
		return r.grow(ctx, driver, claim, volume)
	case expansionReport:
		return reconcile.Result{}, r.report(ctx, claim, volume)
	}
	return reconcile.Result{}, nil
}

// grow has the driver make room and writes the sizes.
func (r *ExpansionReconciler) grow(ctx context.Context, driver provisioner.Driver, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) (reconcile.Result, error) {
	start := r.Clock.Now()
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	request := requestDigest(sha256.Sum256([]byte(string(claim.UID) + " " + size.String())))
	if wait := r.infeasible.Wait(client.ObjectKeyFromObject(claim), request); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	grown, err := callExpander(ctx, driver, volume, size.Value())
	if err != nil {
		return r.failed(ctx, claim, volume, request, start, err)
	}
	crashpoint.Reach(crashpoint.StorageExpanded)
	if err := r.patchVolume(ctx, volume, claim, grown.Annotations); err != nil {
		return reconcile.Result{}, fmt.Errorf("write the volume's capacity: %w", err)
	}
	crashpoint.Reach(crashpoint.VolumeExpanded)
	if err := r.report(ctx, claim, volume); err != nil {
		return reconcile.Result{}, err
	}
	r.infeasible.Forget(client.ObjectKeyFromObject(claim))
	tell(r.Events, claim, reasonVolumeResizeSuccessful, actionExpand, "Volume %s has %s now; %s", volume.Name, size.String(), grown.Note)
	took := r.Clock.Since(start)
	r.Metrics.expandSeconds.WithLabelValues(volume.Spec.StorageClassName).Observe(took.Seconds())
	log.FromContext(ctx).Info("Expanded volume", append(r.keys(volume, start), "size", size.String())...)
	return reconcile.Result{}, nil
}

func callExpander(ctx context.Context, driver provisioner.Driver, volume *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	expander, ok := provisioner.As[provisioner.Expander](driver)
	if !ok {
		return provisioner.Expansion{}, provisioner.Infeasible("claim field spec.resources.requests.storage", fmt.Sprint(size), "%s has no volumes that can grow",
			volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	}
	return expander.Expand(ctx, volume, size)
}

// failed tells the claim what went wrong and says when to try again.
func (r *ExpansionReconciler) failed(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, request requestDigest, start time.Time, err error) (reconcile.Result, error) {
	if provisioner.IsIgnored(err) {
		return reconcile.Result{}, nil
	}
	r.Metrics.expandFailed.WithLabelValues(volume.Spec.StorageClassName).Inc()
	warnOf(err, r.Events, claim, reasonVolumeResizeFailed, actionExpand, "failed to expand volume %s: %v", volume.Name, err)
	keys := r.keys(volume, start)
	if refusedExpansion(err) {
		if err := r.condemn(ctx, claim, clip(err.Error(), maxEventNote)); err != nil {
			return reconcile.Result{}, err
		}
	}
	if provisioner.IsInfeasible(err) {
		log.FromContext(ctx).Info("The volume can't grow to what its claim asks for", append(keys, "reason", err.Error())...)
		return reconcile.Result{RequeueAfter: r.infeasible.Add(client.ObjectKeyFromObject(claim), request)}, nil
	}
	if wait, ok := provisioner.RetryAfter(err); ok {
		log.FromContext(ctx).Info("The volume's storage is unavailable", append(keys, "reason", err.Error(), "retryAfter", wait.String())...)
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return reconcile.Result{}, &storageError{what: "Expansion failed", keys: keys, err: err}
}

// condemn writes into the claim why its volume did not grow, unless it says so.
func (r *ExpansionReconciler) condemn(ctx context.Context, claim *corev1.PersistentVolumeClaim, why string) error {
	condition := corev1.PersistentVolumeClaimCondition{
		Type:               corev1.PersistentVolumeClaimControllerResizeError,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.NewTime(r.Clock.Now()),
		Reason:             reasonVolumeResizeFailed,
		Message:            why,
	}
	for _, c := range claim.Status.Conditions {
		if c.Type != condition.Type || c.Status != condition.Status {
			continue
		}
		if c.Reason == condition.Reason && c.Message == condition.Message {
			return nil
		}
		condition.LastTransitionTime = c.LastTransitionTime
	}
	return r.patchClaimStatus(ctx, claim, map[string]any{"conditions": []any{condition}})
}

// keys are those of the log's line on an attempt to expand volume.
func (r *ExpansionReconciler) keys(volume *corev1.PersistentVolume, start time.Time) []any {
	o := volumeOutcome(r.Drivers, volume, start)
	o.claim, o.volume = "", volume.Name // the reconciler's requests are claims
	return o.keys(r.Clock.Now())
}

// patchVolume writes the new capacity into this very volume, and annotations.
func (r *ExpansionReconciler) patchVolume(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, annotations map[string]string) error {
	before := volume.DeepCopy()
	maps.Copy(volume.Annotations, annotations)
	volume.Spec.Capacity[corev1.ResourceStorage] = claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return r.Client.Patch(ctx, volume, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// report writes into the claim what its volume has, and that nothing is left to
// do. Only the conditions of an expansion are touched.
func (r *ExpansionReconciler) report(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) error {
	status := map[string]any{"capacity": volume.Spec.Capacity}
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
	return r.patchClaimStatus(ctx, claim, status)
}

// patchClaimStatus merges strategically, so that what others write stays.
func (r *ExpansionReconciler) patchClaimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, status map[string]any) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.ResourceVersion},
		"status":   status,
	})
	if err != nil {
		return fmt.Errorf("encode the claim's status: %w", err)
	}
	if err := r.Client.Status().Patch(ctx, claim.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		return fmt.Errorf("write the claim's status: %w", err)
	}
	return nil
}
