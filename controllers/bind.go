package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// DefaultBindGrace is how long kube-controller-manager has to bind a volume
// before BindReconciler does.
const DefaultBindGrace = 500 * time.Millisecond

// DefaultBindSilence is how long kube-controller-manager may have something to
// do and do nothing before it is taken for dead. A standby takes over in 15 s, a
// restart takes half a minute; what is longer does not matter to a process that
// starts anew, since it reads all volumes first.
const DefaultBindSilence = 75 * time.Second

// BindReconciler binds the volumes of our drivers that kube-controller-manager
// has not bound within a grace, though it has read them (volumeLag). What it writes is what kube-controller-manager
// would have written (pkg/controller/volume/persistentvolume/pv_controller.go,
// bind), in the same order, so either can finish what the other began.
type BindReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// Drivers are found by a volume's provisioned-by annotation.
	Drivers *provisioner.Registry
	// Metrics counts binds and repairs.
	Metrics *Metrics
	// Clock is the time of the grace.
	Clock clock.PassiveClock
	// Grace is how long kube-controller-manager has before this reconciler
	// binds a volume itself.
	Grace time.Duration
	// Silence is how long kube-controller-manager may do nothing, while volumes
	// wait to be bound, before they are bound without a sign of life from it.
	Silence time.Duration

	pacer *bindPacer
	lag   *volumeLag
}

// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims/status,verbs=patch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch

// SetupWithManager registers the reconciler, with at most workers binds in work
// at a time.
func (r *BindReconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if r.Client == nil || r.Drivers == nil || r.Metrics == nil || r.Clock == nil {
		return fmt.Errorf("set up bind reconciler: Client, Drivers, Metrics and Clock are required")
	}
	r.lag = newVolumeLag(r.Clock, newLagPace(r.Silence))
	if err := mgr.Add(&lagWatcher{client: r.Client, cache: mgr.GetCache(), lag: r.lag, concerns: r.concerns}); err != nil {
		return fmt.Errorf("set up bind reconciler: %w", err)
	}
	r.pacer = newBindPacer(r.Clock, bindPace{
		Settle:     r.Grace / 5,
		Grace:      r.Grace,
		PodGrace:   r.Grace * 4 / 5,
		NextInLine: 40,
		JustPassed: 8,
		Quiet:      r.Grace,
		GiveUp:     10 * r.Grace,
	})
	r.Metrics.lag.set(func() (time.Duration, int) { return r.lag.Known(r.pacer.InLine()) })
	return ctrl.NewControllerManagedBy(mgr).
		Named("bind").
		WatchesRawSource(source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			r.lag.Wakes(func(volume string) { q.Add(reconcile.Request{NamespacedName: types.NamespacedName{Name: volume}}) })
			return nil
		})).
		For(&corev1.PersistentVolume{}, builder.WithPredicates(predicate.NewPredicateFuncs(r.concerns))).
		Watches(&corev1.PersistentVolumeClaim{}, r.watchClaims()).
		WithOptions(controllerOptions(mgr, "volume", workers)).
		Complete(r)
}

func (r *BindReconciler) concerns(o client.Object) bool {
	return r.Drivers.Serves(o.GetAnnotations()[volumehelpers.AnnDynamicallyProvisioned])
}

// watchClaims tells the pacer about the line of claims, and queues the volumes
// of those whose bind moved.
func (r *BindReconciler) watchClaims() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, _ queue) {
			if claim, ok := e.Object.(*corev1.PersistentVolumeClaim); ok && !isTriggered(claim) && !r.waitsForNode(ctx, claim) {
				r.pacer.Arrived(claim.UID)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			before, ok := e.ObjectOld.(*corev1.PersistentVolumeClaim)
			after, ok2 := e.ObjectNew.(*corev1.PersistentVolumeClaim)
			if !ok || !ok2 {
				return
			}
			if before.UID != after.UID { // made anew while the watch was broken
				r.pacer.Forget(before.UID)
			}
			switch {
			case after.Spec.VolumeName != "":
				r.pacer.Left(after.UID)
			case isTriggered(after):
				r.pacer.Triggered(after.UID)
			case selectedNode(before) == "" && selectedNode(after) != "":
				r.pacer.Rejoined(after.UID)
			}
			if bindMoved(before, after) {
				r.queueVolumes(ctx, after, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			r.pacer.Forget(e.Object.GetUID())
			r.queueVolumes(ctx, e.Object, q)
		},
	}
}

// waitsForNode reports whether kube-controller-manager asks for no volume for
// claim before the claim has its node.
func (r *BindReconciler) waitsForNode(ctx context.Context, claim *corev1.PersistentVolumeClaim) bool {
	if selectedNode(claim) != "" {
		return false
	}
	class := &storagev1.StorageClass{}
	name := volumehelpers.GetPersistentVolumeClaimClass(claim)
	return name != "" && r.Client.Get(ctx, client.ObjectKey{Name: name}, class) == nil && waitsForConsumer(class)
}

// bindMoved reports whether a change of a claim matters to its bind.
func bindMoved(before, after *corev1.PersistentVolumeClaim) bool {
	return isTriggered(before) != isTriggered(after) ||
		before.Spec.VolumeName != after.Spec.VolumeName ||
		before.Status.Phase != after.Status.Phase
}

func (r *BindReconciler) queueVolumes(ctx context.Context, claim client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	for _, request := range volumeRequests(ctx, r.Client, client.ObjectKeyFromObject(claim), r.concerns) {
		q.Add(request)
	}
}

// isTriggered reports whether kube-controller-manager has asked for a volume
// for claim, which is the last it writes to a claim before the bind, or will
// not since the claim has a volume.
func isTriggered(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" ||
		claim.Annotations[volumehelpers.AnnStorageProvisioner] != "" ||
		claim.Annotations[volumehelpers.AnnBetaStorageProvisioner] != ""
}

// claimStateOf is how far claim has come on its way to its volume.
func claimStateOf(claim *corev1.PersistentVolumeClaim) claimState {
	switch {
	case isTriggered(claim):
		return claimTriggered
	case selectedNode(claim) != "":
		return claimSelected
	}
	return claimPending
}

// bindProgress is how far the bind of a volume and its claim has come.
type bindProgress int

const (
	// bindMoot: there is no claim to bind, or it is bound elsewhere.
	bindMoot bindProgress = iota
	// bindOpen: something is left to write.
	bindOpen
	// bindLost: the claim was bound, then marked Lost although its volume is
	// there.
	bindLost
	// bindDone: both are Bound.
	bindDone
)

// decideBind says how far the bind of volume has come. claim is the claim that
// volume refers to by name, nil when there is none.
func decideBind(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bindProgress {
	ref := volume.Spec.ClaimRef
	switch {
	case ref == nil || claim == nil || ref.UID != claim.UID || volume.DeletionTimestamp != nil:
		return bindMoot
	case claim.Spec.VolumeName == "" && claim.DeletionTimestamp != nil:
		return bindMoot
	case claim.Spec.VolumeName != "" && claim.Spec.VolumeName != volume.Name:
		return bindMoot
	case claim.Spec.VolumeName == volume.Name && claim.Status.Phase == corev1.ClaimLost:
		return bindLost
	case claim.Spec.VolumeName == volume.Name && claim.Status.Phase == corev1.ClaimBound && volume.Status.Phase == corev1.VolumeBound:
		return bindDone
	}
	return bindOpen
}

// Reconcile binds one volume when it is time.
func (r *BindReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	volume := &corev1.PersistentVolume{}
	err := r.Client.Get(ctx, req.NamespacedName, volume)
	if apierrors.IsNotFound(err) {
		r.lag.Forget(req.Name)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	claim, err := r.claimOf(ctx, volume)
	if err != nil {
		return reconcile.Result{}, err
	}
	progress := decideBind(volume, claim)
	switch progress {
	case bindDone:
		r.lag.Settled(volume.Name)
		r.countBind(ctx, volume, claim)
		return reconcile.Result{}, nil
	case bindMoot:
		r.lag.Settled(volume.Name)
		r.pacer.Forget(claimUID(volume))
		return reconcile.Result{}, nil
	}
	if wait, why := r.wait(volume, claim, progress); wait > 0 {
		log.FromContext(ctx).V(1).Info("Not bound yet", "claim", client.ObjectKeyFromObject(claim), "reason", why, "retryAfter", wait)
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if progress == bindLost {
		err = r.repairLost(ctx, volume, claim)
	} else {
		err = r.bind(ctx, volume, claim)
	}
	if isLostRace(err) {
		return reconcile.Result{RequeueAfter: r.Grace}, nil // decide anew when the cache has caught up
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if progress == bindOpen {
		r.pacer.Bound(claim.UID)
	}
	return reconcile.Result{}, nil
}

// wait returns how long to wait before looking at a volume again, and for what;
// 0 when it is time to bind it, or to put its claim right.
func (r *BindReconciler) wait(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, progress bindProgress) (time.Duration, string) {
	if progress == bindLost {
		if wait := r.lag.CalledLost(volume.Name, r.Clock.Since(volume.CreationTimestamp.Time)); wait > 0 {
			return wait, "kube-controller-manager may put the claim right itself"
		}
	} else if wait := r.pacer.Wait(claim.UID, claimStateOf(claim), r.lag.Age(volume)); wait > 0 {
		return wait, "kube-controller-manager may bind it, or is about to write to the claim"
	}
	return r.lag.Wait(volume, r.pacer.InLine())
}

// isLostRace reports whether a write failed since its object is another than it
// was, or gone. A patch with the UID of an object that was made anew, or with
// another volumeName than a claim has got meanwhile, is called Invalid by the API
// server, not a Conflict.
func isLostRace(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsInvalid(err)
}

// countBind counts a bind that the cache shows as done, once.
func (r *BindReconciler) countBind(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) {
	waited, byBerth := r.pacer.Forget(claim.UID)
	binder := binderCluster
	switch {
	case byBerth:
		binder = binderBerth
	case waited <= 0:
		return // it was bound before this process saw it
	}
	r.Metrics.bindSeconds.WithLabelValues(binder).Observe(waited.Seconds())
	now := r.Clock.Now()
	log.FromContext(ctx).Info("The claim is bound", append(volumeOutcome(r.Drivers, volume, now.Add(-waited)).keys(now), "binder", binder)...)
}

// claimUID is the UID of the claim that volume refers to.
func claimUID(volume *corev1.PersistentVolume) types.UID {
	if volume.Spec.ClaimRef == nil {
		return ""
	}
	return volume.Spec.ClaimRef.UID
}

// claimOf returns the cached claim that volume refers to, nil when there is
// none.
func (r *BindReconciler) claimOf(ctx context.Context, volume *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := volume.Spec.ClaimRef
	if ref == nil {
		return nil, nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, claim)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return claim, err
}

// bind writes what is left to write: the volume's phase, the claim's volume,
// the claim's phase, in kube-controller-manager's order.
func (r *BindReconciler) bind(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	if volume.Status.Phase != corev1.VolumeBound {
		r.lag.Binds(volume.Name)
		// The resource version makes sure that a volume whose claim has gone,
		// and which is being taken back, is not called Bound.
		err := r.patchStatus(ctx, volume.DeepCopy(), map[string]any{
			"metadata": map[string]any{"uid": volume.UID, "resourceVersion": volume.ResourceVersion},
			"status":   map[string]any{"phase": corev1.VolumeBound},
		})
		if err != nil {
			return fmt.Errorf("set the volume's phase: %w", err)
		}
		crashpoint.Reach(crashpoint.VolumePhaseBound)
	}
	if claim.Spec.VolumeName == "" {
		if err := r.patchClaim(ctx, volume, claim); err != nil {
			return fmt.Errorf("set the claim's volume: %w", err)
		}
		crashpoint.Reach(crashpoint.ClaimSpecBound)
	}
	if err := r.patchClaimStatus(ctx, volume, claim); err != nil {
		return fmt.Errorf("set the claim's phase: %w", err)
	}
	crashpoint.Reach(crashpoint.ClaimPhaseBound)
	return nil
}

func (r *BindReconciler) patchClaim(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid": claim.UID,
			"annotations": map[string]string{
				volumehelpers.AnnBindCompleted:     "yes",
				volumehelpers.AnnBoundByController: "yes",
			},
		},
		"spec": map[string]any{"volumeName": volume.Name},
	})
	if err != nil {
		return err
	}
	return r.Client.Patch(ctx, claim.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch))
}

func (r *BindReconciler) patchClaimStatus(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	return r.patchStatus(ctx, claim.DeepCopy(), map[string]any{
		"metadata": map[string]any{"uid": claim.UID},
		"status": map[string]any{
			"phase":       corev1.ClaimBound,
			"accessModes": volume.Spec.AccessModes,
			"capacity":    volume.Spec.Capacity,
		},
	})
}

// patchStatus merges strategically: a JSON merge patch would drop the
// conditions that others write.
func (r *BindReconciler) patchStatus(ctx context.Context, object client.Object, patch map[string]any) error {
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return r.Client.Status().Patch(ctx, object, client.RawPatch(types.StrategicMergePatchType, text))
}

// repairLost puts right a claim that kube-controller-manager called Lost before
// it had seen the claim's volume.
func (r *BindReconciler) repairLost(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	if err := r.patchClaimStatus(ctx, volume, claim); err != nil {
		return fmt.Errorf("repair lost claim: %w", err)
	}
	r.lag.Repaired(volume.Name)
	r.Metrics.lostRepaired.Inc()
	log.FromContext(ctx).Info("Repaired a claim that was marked Lost although its volume is there", volumeOutcome(r.Drivers, volume, time.Time{}).keys(time.Time{})...)
	return nil
}
