package controllers

import (
	"cmp"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/events"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

const (
	// slowProvisioning is how long a driver may take before the claim is told
	// that it is being worked on.
	slowProvisioning = time.Second

	// annAlphaSelectedNode is the old form of AnnSelectedNode.
	annAlphaSelectedNode = "volume.alpha.kubernetes.io/selected-node"

	// cacheLag is how long a volume may be written without being in the cache.
	// A volume that is deleted before it shows is made again after that.
	cacheLag = 10 * time.Second
)

// ClaimReconciler makes volumes for claims: it resolves the claim's class, has
// a driver make the storage, and writes the PersistentVolume. Binding the two
// is the cluster's work, or BindReconciler's.
type ClaimReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server.
	APIReader client.Reader
	// Drivers are found by the provisioner that a class names.
	Drivers *provisioner.Registry
	// Events is where events about claims go.
	Events events.EventRecorder
	// Clock is the time of retries.
	Clock clock.WithDelayedExecution

	infeasible *infeasibleClaims
	// written holds the claims whose volume was written so recently that the
	// cache may not show it yet.
	written *utilcache.Expiring
}

// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch

// SetupWithManager registers the reconciler, with at most workers claims in
// work at a time.
func (r *ClaimReconciler) SetupWithManager(mgr ctrl.Manager, workers int) error {
	if r.Client == nil || r.APIReader == nil || r.Drivers == nil || r.Events == nil || r.Clock == nil {
		return fmt.Errorf("set up claim reconciler: Client, APIReader, Drivers, Events and Clock are required")
	}
	r.infeasible = newInfeasibleClaims(r.Clock, maxRetry)
	r.written = utilcache.NewExpiringWithClock(r.Clock)
	return ctrl.NewControllerManagedBy(mgr).
		Named("claim").
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.claimItself), builder.WithPredicates(mayNeedVolume)).
		Watches(&storagev1.StorageClass{}, handler.EnqueueRequestsFromMapFunc(r.claimsOfClass)).
		Watches(&corev1.PersistentVolume{}, handler.EnqueueRequestsFromMapFunc(r.claimsThatLost), builder.WithPredicates(volumeBecameUnavailable)).
		WithOptions(controllerOptions(mgr, "claim", workers)).
		Complete(newPatient(r))
}

// mayNeedVolume drops claims that can't need a volume before they are queued.
var mayNeedVolume = predicate.Funcs{
	CreateFunc:  func(e event.CreateEvent) bool { return unfinished(e.Object) },
	UpdateFunc:  func(e event.UpdateEvent) bool { return unfinished(e.ObjectNew) },
	DeleteFunc:  func(event.DeleteEvent) bool { return true }, // what is remembered of it has to go
	GenericFunc: func(event.GenericEvent) bool { return false },
}

func unfinished(o client.Object) bool {
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	return ok && claimNeedsNoVolume(claim) == ""
}

// claimItself queues claim unless its class belongs to another provisioner. A
// claim whose class is not there yet passes.
func (r *ClaimReconciler) claimItself(ctx context.Context, o client.Object) []reconcile.Request {
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	choice, err := r.chooseClass(ctx, claim)
	if err != nil {
		log.FromContext(ctx).Error(err, "Look up the class of a claim", "claim", client.ObjectKeyFromObject(o).String())
	}
	if choice.Class != nil && !r.Drivers.Serves(choice.Class.Provisioner) {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(claim)}}
}

// claimsOfClass finds the claims that a change of a class may concern: those
// that name it, and those that name none, should it be the default.
func (r *ClaimReconciler) claimsOfClass(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, key := range []string{o.GetName(), ""} {
		requests = append(requests, r.unboundClaims(ctx, key)...)
	}
	return requests
}

// claimsThatLost finds the claims that may have waited for a volume which is
// no longer to be had.
func (r *ClaimReconciler) claimsThatLost(ctx context.Context, o client.Object) []reconcile.Request {
	volume, ok := o.(*corev1.PersistentVolume)
	if !ok {
		return nil
	}
	if ref := volume.Spec.ClaimRef; ref != nil {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}}}
	}
	return r.unboundClaims(ctx, volumehelpers.GetPersistentVolumeClass(volume))
}

func (r *ClaimReconciler) unboundClaims(ctx context.Context, class string) []reconcile.Request {
	var list corev1.PersistentVolumeClaimList
	if err := r.Client.List(ctx, &list, client.MatchingFields{indexUnboundClass: class}, client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).Error(err, "List unbound claims", "class", class)
		return nil
	}
	requests := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		requests[i].NamespacedName = client.ObjectKeyFromObject(&list.Items[i])
	}
	return requests
}

// volumeBecameUnavailable passes the moments at which a claim that was left to
// an existing volume has to be looked at again.
var volumeBecameUnavailable = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.PersistentVolume)
		after, ok2 := e.ObjectNew.(*corev1.PersistentVolume)
		return ok && ok2 && before.Status.Phase == corev1.VolumeAvailable &&
			(after.Status.Phase != corev1.VolumeAvailable || before.Spec.ClaimRef == nil && after.Spec.ClaimRef != nil)
	},
	DeleteFunc:  func(event.DeleteEvent) bool { return true },
	GenericFunc: func(event.GenericEvent) bool { return false },
}

// Reconcile brings one claim as far as its volume's creation.
func (r *ClaimReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := r.Client.Get(ctx, req.NamespacedName, claim); err != nil {
		r.infeasible.Forget(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	choice, err := r.chooseClass(ctx, claim)
	if err != nil {
		return reconcile.Result{}, err
	}
	volumes, err := r.bindableVolumes(ctx, claim)
	if err != nil {
		return reconcile.Result{}, err
	}
	decision, err := decideClaim(claim, choice, r.Drivers.Serves, volumes)
	if err != nil {
		return reconcile.Result{}, err
	}
	switch decision.Action {
	case claimAssignClass:
		return reconcile.Result{}, r.assignClass(ctx, claim, choice.Class)
	case claimProvision:
		return r.provision(ctx, claim, choice.Class)
	}
	log.FromContext(ctx).V(1).Info("Nothing to do for claim", "reason", decision.Reason)
	return reconcile.Result{}, nil
}

func (r *ClaimReconciler) chooseClass(ctx context.Context, claim *corev1.PersistentVolumeClaim) (classChoice, error) {
	var list storagev1.StorageClassList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return classChoice{}, fmt.Errorf("list classes: %w", err)
	}
	classes := make([]*storagev1.StorageClass, len(list.Items))
	for i := range list.Items {
		classes[i] = &list.Items[i]
	}
	return chooseClass(claim, classes), nil
}

// bindableVolumes lists the volumes the cluster could bind to claim.
func (r *ClaimReconciler) bindableVolumes(ctx context.Context, claim *corev1.PersistentVolumeClaim) ([]*corev1.PersistentVolume, error) {
	reserved, err := volumesReferringTo(ctx, r.Client, client.ObjectKeyFromObject(claim))
	if err != nil {
		return nil, err
	}
	available, err := listVolumes(ctx, r.Client, indexAvailableClass, volumehelpers.GetPersistentVolumeClaimClass(claim))
	if err != nil {
		return nil, err
	}
	return append(reserved, available...), nil
}

// assignClass writes the default class into a claim that names none, since
// Kubernetes binds no volume whose class differs from its claim's. The change
// brings the claim back here.
func (r *ClaimReconciler) assignClass(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	patch := client.MergeFromWithOptions(claim.DeepCopy(), client.MergeFromWithOptimisticLock{})
	claim.Spec.StorageClassName = &class.Name
	err := r.Client.Patch(ctx, claim, patch)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // it changed meanwhile, and the change brings it back
	}
	if err != nil {
		return fmt.Errorf("assign default class %q: %w", class.Name, err)
	}
	log.FromContext(ctx).Info("Assigned the default class", "class", class.Name)
	return nil
}

// provision has the driver make the storage, then writes the volume.
func (r *ClaimReconciler) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (reconcile.Result, error) {
	start := r.Clock.Now()
	key := client.ObjectKeyFromObject(claim)
	request, err := digestRequest(claim, class)
	if err != nil {
		return reconcile.Result{}, err
	}
	if wait := r.infeasible.Wait(key, request); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if _, written := r.written.Get(claim.UID); written {
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	}

	driver, ok := r.Drivers.Get(class.Provisioner)
	if !ok {
		return reconcile.Result{}, nil
	}
	if q, ok := provisioner.As[libcontroller.Qualifier](driver); ok && !q.ShouldProvision(ctx, claim) {
		return reconcile.Result{}, nil
	}
	options := libcontroller.ProvisionOptions{
		StorageClass:     class.DeepCopy(),
		PVName:           volumeNameFor(claim),
		PVC:              claim,
		SelectedNodeName: selectedNode(claim),
	}
	volume, state, err := r.callDriver(ctx, driver, options)
	if err != nil {
		return r.provisioningFailed(ctx, claim, class, request, state, start, err)
	}

	completeVolume(volume, claim, class)
	if err := r.createVolume(ctx, volume, claim); err != nil {
		warn(r.Events, claim, reasonProvisioningFailed, actionProvision, "Error creating provisioned PV object for claim %s: %v", key, err)
		return reconcile.Result{}, err
	}
	crashpoint.Reach(crashpoint.VolumeCreated)
	r.written.Set(claim.UID, nil, cacheLag)
	r.infeasible.Forget(key)
	r.provisioned(claim, volume, driver)
	done := claimOutcome(claim, class, start)
	if node := nodeOf(r.Drivers, volume); node != "" {
		done.node = node
	}
	log.FromContext(ctx).Info("Provisioned volume", done.keys(r.Clock.Now())...)
	return reconcile.Result{}, nil
}

// provisioned tells the claim that its volume was made, in the library's words,
// and what the driver has to add. That is one event: a burst of claims makes
// enough of them.
func (r *ClaimReconciler) provisioned(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, driver provisioner.Driver) {
	text := "Successfully provisioned volume " + volume.Name
	if n, ok := provisioner.As[provisioner.Noticer](driver); ok {
		if notice := n.Notice(volume); notice != "" {
			text += "; " + notice
		}
	}
	tell(r.Events, claim, reasonProvisioningSucceeded, actionProvision, "%s", text)
}

// callDriver calls Provision, and tells the claim about it when it takes long.
func (r *ClaimReconciler) callDriver(ctx context.Context, driver provisioner.Driver, options libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	if b, ok := provisioner.As[libcontroller.BlockProvisioner](driver); isBlock(options.PVC) && (!ok || !b.SupportsBlock(ctx)) {
		return nil, libcontroller.ProvisioningFinished, provisioner.Infeasible("claim field spec.volumeMode", string(corev1.PersistentVolumeBlock),
			"%s does not support block volumes; set volumeMode to Filesystem", options.StorageClass.Provisioner)
	}
	slow := r.Clock.AfterFunc(slowProvisioning, func() {
		tell(r.Events, options.PVC, reasonProvisioning, actionProvision,
			"External provisioner is provisioning volume for claim %q", client.ObjectKeyFromObject(options.PVC).String())
	})
	defer slow.Stop()
	volume, state, err := driver.Provision(ctx, options)
	if err != nil {
		return nil, state, err
	}
	return volume, state, checkVolumeSatisfiesClaim(volume, options.PVC)
}

// provisioningFailed tells the claim what went wrong and says when to try again.
func (r *ClaimReconciler) provisioningFailed(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, request requestDigest, state libcontroller.ProvisioningState, start time.Time, err error) (reconcile.Result, error) {
	if provisioner.IsIgnored(err) {
		log.FromContext(ctx).V(1).Info("The driver left the claim to another", "reason", err.Error())
		return reconcile.Result{}, nil
	}
	warnOf(err, r.Events, claim, reasonProvisioningFailed, actionProvision, "failed to provision volume with StorageClass %q: %v", class.Name, err)
	keys := claimOutcome(claim, class, start).keys(r.Clock.Now())
	logger := log.FromContext(ctx).WithValues(keys...).WithValues("reason", err.Error())
	switch {
	case provisioner.IsInfeasible(err):
		logger.Info("The claim can't be provisioned until it or its class changes")
		return reconcile.Result{RequeueAfter: r.infeasible.Add(client.ObjectKeyFromObject(claim), request)}, nil
	case state == libcontroller.ProvisioningReschedule && selectedNode(claim) != "":
		switch err := r.reschedule(ctx, claim); {
		case apierrors.IsConflict(err):
			return reconcile.Result{RequeueAfter: minRetry}, nil // somebody wrote meanwhile: look again
		case err != nil:
			return reconcile.Result{}, err
		}
		logger.Info("Gave the claim back to the scheduler")
		return reconcile.Result{}, nil
	}
	if wait, ok := provisioner.RetryAfter(err); ok {
		logger.Info("The claim's storage is unavailable", "retryAfter", wait.String())
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return reconcile.Result{}, &storageError{what: "Provisioning failed", keys: keys, err: err}
}

// reschedule gives the claim back to the scheduler, which chooses another node.
func (r *ClaimReconciler) reschedule(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	patch := client.MergeFromWithOptions(claim.DeepCopy(), client.MergeFromWithOptimisticLock{})
	delete(claim.Annotations, volumehelpers.AnnSelectedNode)
	delete(claim.Annotations, annAlphaSelectedNode)
	if err := r.Client.Patch(ctx, claim, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("give the claim back to the scheduler: %w", err)
	}
	return nil
}

// completeVolume adds to what the driver made all that the cluster needs to
// bind it, so that one write is enough.
func completeVolume(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) {
	volume.Spec.ClaimRef = &corev1.ObjectReference{
		APIVersion:      "v1",
		Kind:            "PersistentVolumeClaim",
		Namespace:       claim.Namespace,
		Name:            claim.Name,
		UID:             claim.UID,
		ResourceVersion: claim.ResourceVersion,
	}
	volume.Spec.StorageClassName = class.Name
	metav1.SetMetaDataAnnotation(&volume.ObjectMeta, volumehelpers.AnnDynamicallyProvisioned, class.Provisioner)
	if volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		controllerutil.AddFinalizer(volume, volumehelpers.PVDeletionProtectionFinalizer)
	}
}

// createVolume writes volume. One that an earlier attempt wrote for the same
// claim is as good.
func (r *ClaimReconciler) createVolume(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	err := r.Client.Create(ctx, volume)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	existing := &corev1.PersistentVolume{}
	if err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(volume), existing); err != nil {
		return err
	}
	if existing.DeletionTimestamp != nil {
		return fmt.Errorf("the PersistentVolume %q that was made before is being deleted", volume.Name)
	}
	if existing.Spec.ClaimRef == nil || existing.Spec.ClaimRef.UID != claim.UID {
		return fmt.Errorf("a PersistentVolume %q exists and belongs to another claim; delete or rename it", volume.Name)
	}
	return nil
}

// volumeNameFor is the name every external provisioner gives a claim's volume.
func volumeNameFor(claim *corev1.PersistentVolumeClaim) string {
	return "pvc-" + string(claim.UID)
}

func selectedNode(claim *corev1.PersistentVolumeClaim) string {
	return cmp.Or(claim.Annotations[volumehelpers.AnnSelectedNode], claim.Annotations[annAlphaSelectedNode])
}

func isBlock(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}
