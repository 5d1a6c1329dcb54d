package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
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

	turns *nodeTurns
	// named is asked before a volume is taken back.
	named *namedPaths
	// names is asked before a volume is reclaimed.
	names *DirectoryNames
	// queue takes the volumes whose turn it is.
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch

// SetupWithManager registers the reconciler, with at most workers volumes in
// work at a time.
func (r *VolumeReconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if r.Client == nil || r.APIReader == nil || r.Drivers == nil || r.Events == nil || r.Clock == nil {
		return fmt.Errorf("set up volume reconciler: Client, APIReader, Drivers, Events and Clock are required")
	}
	r.turns = newNodeTurns(r.Clock, workers/2)
	r.named = &namedPaths{reader: r.APIReader, clock: r.Clock, fresh: undoNamesFresh}
	r.names = &DirectoryNames{Client: r.Client, APIReader: r.APIReader, Drivers: r.Drivers}
	return ctrl.NewControllerManagedBy(mgr).
		Named("volume").
		WatchesRawSource(source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			r.queue = q
			return nil
		})).
		For(&corev1.PersistentVolume{}, builder.WithPredicates(predicate.NewPredicateFuncs(r.concerns))).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.volumesOfClaim), builder.WithPredicates(claimLetsGo)).
		WithOptions(controllerOptions(mgr, "volume", workers)).
		Complete(newPatient(r))
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

// undoNamesFresh is for how long what volumes name is believed when volumes that were
// never bound are taken back: there may be many of these at a time, and to ask means
// to list all volumes.
const undoNamesFresh = 30 * time.Second

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
	node := servingNodeOf(r.Drivers, volume)
	if node == "" || action != volumeUndo && action != volumeReclaim {
		_, err := r.act(ctx, req)
		if wait, ok := provisioner.RetryAfter(err); ok {
			return r.putOff(ctx, volume, wait, err), nil
		}
		return reconcile.Result{}, err
	}
	return r.actOnNode(ctx, req, volume, node)
}

// goneNodeRetry is when to look again at a volume that LostNodeReconciler
// decides about.
const goneNodeRetry = time.Minute

// actOnNode acts when it is the volume's turn on its node. A node that is gone
// is LostNodeReconciler's business.
func (r *VolumeReconciler) actOnNode(ctx context.Context, req reconcile.Request, volume *corev1.PersistentVolume, node string) (reconcile.Result, error) {
	present, err := nodeExists(ctx, r.Client, node)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !present {
		return reconcile.Result{RequeueAfter: spread(goneNodeRetry)}, nil
	}
	if wait := r.turns.Begin(node, req); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	asked, err := r.act(ctx, req)
	wait, others := r.turns.End(node, req, asked, err)
	for _, other := range others {
		r.queue.Add(other)
	}
	if wait > 0 {
		return r.putOff(ctx, volume, wait, err), nil
	}
	return reconcile.Result{}, err
}

// putOff has a volume tried again after wait, since its storage is unavailable.
func (r *VolumeReconciler) putOff(ctx context.Context, volume *corev1.PersistentVolume, wait time.Duration, reason error) reconcile.Result {
	keys := volumeOutcome(r.Drivers, volume, time.Time{}).keys(r.Clock.Now())
	log.FromContext(ctx).Info("The volume's storage is unavailable", append(keys, "reason", reason.Error(), "retryAfter", wait.String())...)
	return reconcile.Result{RequeueAfter: wait}
}

// act decides by what the API server has, and does it. It reports whether that
// took the driver.
func (r *VolumeReconciler) act(ctx context.Context, req reconcile.Request) (bool, error) {
	volume := &corev1.PersistentVolume{}
	if err := r.APIReader.Get(ctx, req.NamespacedName, volume); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	action, err := r.decide(ctx, r.APIReader, volume)
	if err != nil {
		return false, err
	}
	switch action {
	case volumeUndo:
		err := r.undo(ctx, volume)
		return !errors.Is(err, errNamedTwice), err
	case volumeReclaim:
		err := r.reclaim(ctx, volume)
		return !errors.Is(err, errNamedTwice), err
	case volumeProtect:
		return false, setFinalizer(ctx, r.Client, volume, true)
	case volumeUnprotect:
		return false, setFinalizer(ctx, r.Client, volume, false)
	}
	return false, nil
}

// decide reads the claim of volume through reader and applies decideVolume.
func (r *VolumeReconciler) decide(ctx context.Context, reader client.Reader, volume *corev1.PersistentVolume) (volumeAction, error) {
	if volume.Spec.ClaimRef == nil || !r.concerns(volume) {
		return volumeLeave, nil
	}
	claim, err := claimOf(ctx, reader, volume)
	if err != nil {
		return volumeLeave, err
	}
	return decideVolume(volume, claim), nil
}

// claimOf reads the claim that volume refers to by name; nil when there is none.
func claimOf(ctx context.Context, reader client.Reader, volume *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := volume.Spec.ClaimRef
	if ref == nil {
		return nil, nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := reader.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, claim)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return claim, nil
}

// reclaim deletes the storage first, so that a volume whose storage can't be
// deleted stays visible and can still be retained, then the object.
func (r *VolumeReconciler) reclaim(ctx context.Context, volume *corev1.PersistentVolume) error {
	start := r.Clock.Now()
	driver := r.driverOf(volume)
	if guard, ok := provisioner.As[libcontroller.DeletionGuard](driver); ok && !guard.ShouldDelete(ctx, volume) {
		return nil
	}
	err := r.checkNames(ctx, volume)
	if err == nil {
		err = driver.Delete(ctx, volume)
	}
	if provisioner.IsIgnored(err) {
		log.FromContext(ctx).V(1).Info("The driver left the volume to another", "reason", err.Error())
		return nil
	}
	if err != nil {
		warnOf(err, r.Events, volume, reasonVolumeFailedDelete, actionReclaim, "%v", err)
		return r.failed("Deletion failed", volume, start, err)
	}
	crashpoint.Reach(crashpoint.StorageDeleted)
	if err := deleteVolumeObject(ctx, r.Client, volume); err != nil {
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
		err = r.discard(ctx, inventory, volume)
	}
	switch {
	case errors.Is(err, provisioner.ErrNotEmpty) && volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return r.reclaim(ctx, volume)
	case errors.Is(err, provisioner.ErrNotEmpty):
		r.logEnd(ctx, "A volume that was never bound may hold data, and is left as its policy says", volume, start)
		return nil
	case err != nil:
		warnOf(err, r.Events, volume, reasonVolumeFailedDelete, actionReclaim, "%v", err)
		return r.failed("Taking back a volume that was never bound failed", volume, start, err)
	}
	crashpoint.Reach(crashpoint.StorageDeleted)
	if err := deleteVolumeObject(ctx, r.Client, volume); err != nil {
		return err
	}
	r.logEnd(ctx, "Took back volume that was never bound", volume, start)
	return nil
}

// discard takes back the storage of volume, unless another volume names it too.
func (r *VolumeReconciler) discard(ctx context.Context, inventory provisioner.Inventory, volume *corev1.PersistentVolume) error {
	record := inventory.RecordOf(volume)
	other, err := r.named.by(ctx, record.Path, volume.Name)
	switch {
	case err != nil:
		return err
	case other != "":
		return namedTwice(record.Path, other)
	}
	return inventory.Discard(ctx, record)
}

// checkNames refuses to remove a directory that another volume names, of which some
// part may be in use.
func (r *VolumeReconciler) checkNames(ctx context.Context, volume *corev1.PersistentVolume) error {
	directory := directoryOf(r.Drivers, volume)
	other, err := r.names.By(ctx, directory, volume.Name)
	if err != nil || other == "" {
		return err
	}
	return namedTwice(directory.Path, other)
}

// errNamedTwice says that the driver was not asked, since two volumes name a directory.
var errNamedTwice = errors.New("not touching")

func namedTwice(directory, other string) error {
	return fmt.Errorf("%w %s: PersistentVolume %s names it too, or a directory above or inside it: delete the wrong one of the two, with policy Retain to keep the directory", errNamedTwice, directory, other)
}

func (r *VolumeReconciler) driverOf(volume *corev1.PersistentVolume) provisioner.Driver {
	driver, _ := r.Drivers.Get(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	return driver
}

func (r *VolumeReconciler) logEnd(ctx context.Context, message string, volume *corev1.PersistentVolume, start time.Time) {
	log.FromContext(ctx).Info(message, volumeOutcome(r.Drivers, volume, start).keys(r.Clock.Now())...)
}

func (r *VolumeReconciler) failed(what string, volume *corev1.PersistentVolume, start time.Time, err error) error {
	return &storageError{what: what, keys: volumeOutcome(r.Drivers, volume, start).keys(r.Clock.Now()), err: err}
}
