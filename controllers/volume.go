package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
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
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// VolumeReconciler ends volumes: by policy when their claim is gone, and at
// once, whatever the policy, when they were made but never bound. It also keeps
// their finalizer in step with their reclaim policy.
type VolumeReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server. Nothing is destroyed on the word of
	// a cache.
	APIReader client.Reader
	// Drivers are found by a volume's provisioned-by annotation.
	Drivers *provisioner.Registry
	// Events is where events about volumes go.
	Events events.EventRecorder
	// Clock times deletions.
	Clock clock.PassiveClock
}

// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch

// SetupWithManager registers the reconciler, with at most workers volumes in
// work at a time.
func (r *VolumeReconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if r.Client == nil || r.APIReader == nil || r.Drivers == nil || r.Events == nil || r.Clock == nil {
		return fmt.Errorf("set up volume reconciler: Client, APIReader, Drivers, Events and Clock are required")
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("volume").
		For(&corev1.PersistentVolume{}, builder.WithPredicates(predicate.NewPredicateFuncs(r.concerns))).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.volumesOfClaim), builder.WithPredicates(claimLetsGo)).
		WithOptions(controllerOptions(mgr, "volume", workers)).
		Complete(r)
}

func (r *VolumeReconciler) concerns(o client.Object) bool {
	return r.Drivers.Serves(o.GetAnnotations()[volumehelpers.AnnDynamicallyProvisioned])
}

// claimLetsGo passes the moments at which a claim gives up a volume: it is
// deleted, or bound (perhaps elsewhere).
var claimLetsGo = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.PersistentVolumeClaim)
		after, ok2 := e.ObjectNew.(*corev1.PersistentVolumeClaim)
		return ok && ok2 && (before.Spec.VolumeName != after.Spec.VolumeName || before.UID != after.UID)
	},
	DeleteFunc:  func(event.DeleteEvent) bool { return true },
	GenericFunc: func(event.GenericEvent) bool { return false },
}

func (r *VolumeReconciler) volumesOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	return volumeRequests(ctx, r.Client, client.ObjectKeyFromObject(o), r.concerns)
}

// Reconcile decides on the cache's word first, which costs nothing and suffices
// for almost every volume, and again on the API server's before it destroys.
func (r *VolumeReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	volume := &corev1.PersistentVolume{}
	if err := r.Client.Get(ctx, req.NamespacedName, volume); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	action, err := r.decide(ctx, r.Client, volume)
	if err != nil || action == volumeLeave {
		return reconcile.Result{}, err
	}

	volume = &corev1.PersistentVolume{}
	if err := r.APIReader.Get(ctx, req.NamespacedName, volume); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if action, err = r.decide(ctx, r.APIReader, volume); err != nil {
		return reconcile.Result{}, err
	}
	switch action {
	case volumeUndo:
		err = r.undo(ctx, volume)
	case volumeReclaim:
		err = r.reclaim(ctx, volume)
	case volumeProtect:
		err = r.setFinalizer(ctx, volume, true)
	case volumeUnprotect:
		err = r.setFinalizer(ctx, volume, false)
	}
	if wait, ok := provisioner.RetryAfter(err); ok {
		log.FromContext(ctx).Info("The volume's storage is unavailable", "reason", err.Error(), "retryAfter", wait.String())
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return reconcile.Result{}, err
}

// decide reads the claim of volume through reader and applies decideVolume.
func (r *VolumeReconciler) decide(ctx context.Context, reader client.Reader, volume *corev1.PersistentVolume) (volumeAction, error) {
	ref := volume.Spec.ClaimRef
	if ref == nil || !r.concerns(volume) {
		return volumeLeave, nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := reader.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, claim)
	if apierrors.IsNotFound(err) {
		return decideVolume(volume, nil), nil
	}
	if err != nil {
		return volumeLeave, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return decideVolume(volume, claim), nil
}

// reclaim deletes the storage first, so that a volume whose storage can't be
// deleted stays visible and can still be retained, then the object.
func (r *VolumeReconciler) reclaim(ctx context.Context, volume *corev1.PersistentVolume) error {
	start := r.Clock.Now()
	driver := r.driverOf(volume)
	if guard, ok := provisioner.As[libcontroller.DeletionGuard](driver); ok && !guard.ShouldDelete(ctx, volume) {
		return nil
	}
	err := driver.Delete(ctx, volume)
	if provisioner.IsIgnored(err) {
		log.FromContext(ctx).V(1).Info("The driver left the volume to another", "reason", err.Error())
		return nil
	}
	if err != nil {
		warn(r.Events, volume, reasonVolumeFailedDelete, actionReclaim, "%v", err)
		return fmt.Errorf("delete the storage: %w", err)
	}
	crashpoint.Reach(crashpoint.StorageDeleted)
	if err := r.deleteObject(ctx, volume); err != nil {
		return err
	}
	r.logEnd(ctx, "Deleted volume", volume, start)
	return nil
}

// undo ends a volume that was never bound, and so can hold nothing. Should it
// hold something all the same, the PersistentVolume was not new: one that is
// restored from a backup is Pending again. Then its policy decides, as it does
// when the driver can't tell.
func (r *VolumeReconciler) undo(ctx context.Context, volume *corev1.PersistentVolume) error {
	start := r.Clock.Now()
	driver := r.driverOf(volume)
	if guard, ok := provisioner.As[libcontroller.DeletionGuard](driver); ok && !guard.ShouldDelete(ctx, volume) {
		return nil
	}
	err := provisioner.ErrNotEmpty
	if inventory, ok := provisioner.As[provisioner.Inventory](driver); ok {
		err = inventory.Discard(ctx, volume.Name)
	}
	switch {
	case errors.Is(err, provisioner.ErrNotEmpty) && volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return r.reclaim(ctx, volume)
	case errors.Is(err, provisioner.ErrNotEmpty):
		log.FromContext(ctx).Info("A volume that was never bound may hold data, and is left as its policy says")
		return nil
	case err != nil:
		warn(r.Events, volume, reasonVolumeFailedDelete, actionReclaim, "%v", err)
		return fmt.Errorf("take back the storage: %w", err)
	}
	crashpoint.Reach(crashpoint.StorageDeleted)
	if err := r.deleteObject(ctx, volume); err != nil {
		return err
	}
	r.logEnd(ctx, "Took back volume that was never bound", volume, start)
	return nil
}

// deleteObject deletes volume, whose storage is gone, then lets it go.
func (r *VolumeReconciler) deleteObject(ctx context.Context, volume *corev1.PersistentVolume) error {
	if volume.DeletionTimestamp == nil {
		if err := r.Client.Delete(ctx, volume.DeepCopy(), client.Preconditions{UID: &volume.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete volume: %w", err)
		}
		crashpoint.Reach(crashpoint.VolumeDeleted)
	}
	return r.setFinalizer(ctx, volume, false)
}

// setFinalizer adds or removes our finalizer. Only that entry is touched, and
// only on this very volume.
func (r *VolumeReconciler) setFinalizer(ctx context.Context, volume *corev1.PersistentVolume, present bool) error {
	const finalizer = volumehelpers.PVDeletionProtectionFinalizer
	if isProtected(volume) == present {
		return nil
	}
	field := "$deleteFromPrimitiveList/finalizers"
	if present {
		field = "finalizers"
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": volume.UID, field: []string{finalizer}}})
	if err != nil {
		return fmt.Errorf("encode finalizer patch: %w", err)
	}
	err = r.Client.Patch(ctx, volume.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("change finalizer: %w", err)
	}
	crashpoint.Reach(crashpoint.FinalizerRemoved)
	return nil
}

func (r *VolumeReconciler) driverOf(volume *corev1.PersistentVolume) provisioner.Driver {
	driver, _ := r.Drivers.Get(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	return driver
}

func (r *VolumeReconciler) logEnd(ctx context.Context, message string, volume *corev1.PersistentVolume, start time.Time) {
	ref := volume.Spec.ClaimRef
	log.FromContext(ctx).Info(message, "claim", types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}.String(),
		"class", volume.Spec.StorageClassName, "driver", volume.Annotations[volumehelpers.AnnDynamicallyProvisioned],
		"duration", r.Clock.Since(start).String())
}
