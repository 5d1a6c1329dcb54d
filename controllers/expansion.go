package controllers

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
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
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// ExpansionReconciler makes volumes larger when their claims ask for it: the size
// is written into the claim as allocated, so that quotas count it whatever becomes
// of the request; the driver makes room; then the volume's capacity is written,
// then the claim's. Each step can be repeated, and a crash between two leaves what
// the next attempt finishes. kube-controller-manager does no more for such volumes than
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
		// Somebody wrote meanwhile, and may have changed the request: look again. A
		// claim that was made anew is a conflict too, since what is written carries
		// the resource version besides the UID.
		return reconcile.Result{RequeueAfter: minRetry}, nil
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
	if guard, ok := provisioner.As[libcontroller.DeletionGuard](driver); ok && !guard.ShouldDelete(ctx, volume) {
		return reconcile.Result{}, nil // another process, on another node, has it
	}
	start := r.Clock.Now()
	switch step := decideExpansion(claim, volume); step.action {
	case expansionGrow:
		return r.grow(ctx, driver, claim, volume, step)
	case expansionReport:
		if err := r.report(ctx, claim, volume); err != nil {
			return r.refused(ctx, claim, volume, start, err)
		}
	}
	return reconcile.Result{}, nil
}

// grow has the driver make room and writes the sizes.
func (r *ExpansionReconciler) grow(ctx context.Context, driver provisioner.Driver, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, step expansionStep) (reconcile.Result, error) {
	attempt := expansionAttempt{
		size: step.size, start: r.Clock.Now(),
		request: requestDigest(sha256.Sum256([]byte(string(claim.UID) + " " + step.size.String()))),
	}
	if wait := r.infeasible.Wait(client.ObjectKeyFromObject(claim), attempt.request); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	expander, ok := provisioner.As[provisioner.Expander](driver)
	if !ok {
		return r.failed(ctx, claim, volume, attempt, provisioner.Infeasible("claim field spec.resources.requests.storage", step.size.String(),
			"%s has no volumes that can grow", volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]))
	}
	if !step.allocated {
		var err error
		if claim, err = r.allocate(ctx, claim, step.size); err != nil {
			return r.refused(ctx, claim, volume, attempt.start, err)
		}
		crashpoint.Reach(crashpoint.SizeAllocated)
	}
	grown, err := expander.Expand(ctx, volume, step.size.Value())
	if err != nil {
		return r.failed(ctx, claim, volume, attempt, err)
	}
	crashpoint.Reach(crashpoint.StorageExpanded)
	has := step.size
	if grown.Size > has.Value() {
		has = *resource.NewQuantity(grown.Size, resource.BinarySI)
	}
	if err := r.patchVolume(ctx, volume, has, grown.Annotations); err != nil {
		return reconcile.Result{}, fmt.Errorf("write the volume's capacity: %w", err)
	}
	crashpoint.Reach(crashpoint.VolumeExpanded)
	if err := r.report(ctx, claim, volume); err != nil {
		return r.refused(ctx, claim, volume, attempt.start, err)
	}
	r.infeasible.Forget(client.ObjectKeyFromObject(claim))
	tell(r.Events, claim, reasonVolumeResizeSuccessful, actionExpand, "Volume %s has %s now; %s", volume.Name, has.String(), grown.Note)
	took := r.Clock.Since(attempt.start)
	r.Metrics.expandSeconds.WithLabelValues(volume.Spec.StorageClassName).Observe(took.Seconds())
	log.FromContext(ctx).Info("Expanded volume", append(r.keys(volume, attempt.start), "size", has.String())...)
	return reconcile.Result{}, nil
}

// expansionAttempt is an attempt to give a volume a size.
type expansionAttempt struct {
	size    resource.Quantity
	request requestDigest
	start   time.Time
}

// failed tells the claim what the driver failed with, and says when to try again.
func (r *ExpansionReconciler) failed(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, attempt expansionAttempt, err error) (reconcile.Result, error) {
	if provisioner.IsIgnored(err) {
		return reconcile.Result{}, nil
	}
	r.Metrics.expandFailed.WithLabelValues(volume.Spec.StorageClassName).Inc()
	warnOf(err, r.Events, claim, reasonVolumeResizeFailed, actionExpand, "failed to expand volume %s: %v", volume.Name, err)
	keys := r.keys(volume, attempt.start)
	if refusedExpansion(err) {
		if err := r.condemn(ctx, claim, err); err != nil {
			return reconcile.Result{}, err
		}
	}
	wanted := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if grantsNothing(err) && wanted.Cmp(attempt.size) != 0 {
		log.FromContext(ctx).Info("The volume can't grow to what its claim asked for before", append(keys, "reason", err.Error())...)
		return reconcile.Result{RequeueAfter: minRetry}, nil // what it asks for now may be possible
	}
	if provisioner.IsInfeasible(err) {
		log.FromContext(ctx).Info("The volume can't grow to what its claim asks for", append(keys, "reason", err.Error())...)
		return reconcile.Result{RequeueAfter: r.infeasible.Add(client.ObjectKeyFromObject(claim), attempt.request)}, nil
	}
	if wait, ok := provisioner.RetryAfter(err); ok {
		log.FromContext(ctx).Info("The volume's storage is unavailable", append(keys, "reason", err.Error(), "retryAfter", wait.String())...)
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return reconcile.Result{}, &storageError{what: "Expansion failed", keys: keys, err: err}
}

// refused tells the claim that the API server does not take what the claim would
// have: a quota has no room for a volume that is larger than its claim asks for,
// or a policy forbids it. Any other error of the API server is returned as it is.
func (r *ExpansionReconciler) refused(ctx context.Context, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, start time.Time, err error) (reconcile.Result, error) {
	if !apierrors.IsForbidden(err) {
		return reconcile.Result{}, err
	}
	return r.failed(ctx, claim, volume, expansionAttempt{start: start}, err)
}

// keys are those of the log's line on an attempt to expand volume.
func (r *ExpansionReconciler) keys(volume *corev1.PersistentVolume, start time.Time) []any {
	o := volumeOutcome(r.Drivers, volume, start)
	o.claim, o.volume = "", volume.Name // the reconciler's requests are claims
	return o.keys(r.Clock.Now())
}
