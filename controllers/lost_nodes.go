package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/provisioner"
)

// DefaultLostNodeGrace is how long a deleted Node has to come back. It is longer
// than a machine takes to be set up anew under its name, or an administrator to
// notice that the wrong Node was deleted. Waiting costs nothing but objects that
// stay: no pod and no claim waits for a volume to be dropped.
const DefaultLostNodeGrace = 15 * time.Minute

const (
	// lostNodeWorkers is how many deleted Nodes are worked on at a time. Nobody
	// waits for them, and no other reconciler shares these workers.
	lostNodeWorkers = 4
	// lostReportInterval is how often a claim is told that its volume's Node is
	// gone. An event lives for an hour.
	lostReportInterval = time.Hour
	// nodeCacheLag is after how long a Node that only the API server knows is
	// looked for again.
	nodeCacheLag = 30 * time.Second
	// indexNode finds volumes by the Node that holds them.
	indexNode = "berth.node"
)

// LostNodeReconciler looks after the volumes of Nodes that were deleted. After a
// grace it drops those that would be reclaimed, and tells the claims of the
// others. A Node that comes back under the same name ends all that. A request
// is a Node, which need not exist.
type LostNodeReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	// APIReader reads from the API server. Nothing is dropped on the word of a
	// cache.
	APIReader client.Reader
	// Drivers that are provisioner.NodeLocal have volumes on Nodes.
	Drivers *provisioner.Registry
	// Events is where events about claims and volumes go.
	Events events.EventRecorder
	// Metrics counts what is lost.
	Metrics *Metrics
	// Clock is the time of graces and reports.
	Clock clock.PassiveClock
	// Grace is how long a deleted Node has to come back.
	Grace time.Duration

	counts   lostCounts
	mu       sync.Mutex // guards reported
	reported map[types.UID]time.Time
}

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch

// SetupWithManager registers the reconciler.
func (r *LostNodeReconciler) SetupWithManager(ctx context.Context, mgr ctrl.Manager) error {
	if r.Client == nil || r.APIReader == nil || r.Drivers == nil || r.Events == nil || r.Metrics == nil || r.Clock == nil {
		return errors.New("set up reconciler of lost nodes: Client, APIReader, Drivers, Events, Metrics and Clock are required")
	}
	if r.Grace <= 0 {
		return errors.New("set up reconciler of lost nodes: Grace must be more than 0")
	}
	r.reported = map[types.UID]time.Time{}
	r.counts = lostCounts{metrics: r.Metrics, nodes: map[string]map[lostCount]int{}}
	byNode := func(o client.Object) []string {
		volume, ok := o.(*corev1.PersistentVolume)
		if !ok || nodeOf(r.Drivers, volume) == "" {
			return nil
		}
		return []string{nodeOf(r.Drivers, volume)}
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.PersistentVolume{}, indexNode, byNode); err != nil {
		return fmt.Errorf("index %s: %w", indexNode, err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("lost-node").
		Watches(&corev1.PersistentVolume{}, handler.EnqueueRequestsFromMapFunc(r.lostNodeOf)).
		Watches(&corev1.Node{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(nodeComesOrGoes)).
		WithOptions(controllerOptions(mgr, "node", lostNodeWorkers)).
		Complete(r)
}

// nodeComesOrGoes drops what kubelets write into their Nodes all the time.
var nodeComesOrGoes = predicate.Funcs{
	UpdateFunc:  func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
	GenericFunc: func(event.GenericEvent) bool { return false },
}

// lostNodeOf queues the Node of a volume when it is not there, or the volume
// says that it was not.
func (r *LostNodeReconciler) lostNodeOf(ctx context.Context, o client.Object) []reconcile.Request {
	volume, ok := o.(*corev1.PersistentVolume)
	if !ok {
		return nil
	}
	name := nodeOf(r.Drivers, volume)
	if name == "" {
		return nil
	}
	present, err := nodeExists(ctx, r.Client, name)
	if err != nil {
		log.FromContext(ctx).Error(err, "Look up the node of a volume", "volume", volume.Name)
	}
	if _, marked := volume.Annotations[annNodeLostSince]; present && !marked {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: name}}}
}

// nodeExists reports whether there is a Node of that name.
func nodeExists(ctx context.Context, reader client.Reader, name string) (bool, error) {
	err := reader.Get(ctx, types.NamespacedName{Name: name}, &corev1.Node{}, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read node %q: %w", name, err)
	}
	return true, nil
}

// Reconcile looks at all volumes of one Node.
func (r *LostNodeReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	volumes, err := listVolumes(ctx, r.Client, indexNode, req.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	present, err := nodeExists(ctx, r.Client, req.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	if len(volumes) == 0 {
		r.counts.Set(req.Name, nil)
		return reconcile.Result{}, nil
	}
	if !present {
		if present, err = nodeExists(ctx, r.APIReader, req.Name); err != nil {
			return reconcile.Result{}, err
		}
		if present {
			return reconcile.Result{RequeueAfter: nodeCacheLag}, nil
		}
		r.meetNodes(ctx)
	}
	node := lostNode{Present: present, Since: lostSince(volumes, r.Clock.Now()), Grace: r.Grace}
	return r.handleAll(ctx, req.Name, volumes, node)
}

// handleAll does what is to be done with each volume, and says when to look
// again.
func (r *LostNodeReconciler) handleAll(ctx context.Context, name string, volumes []*corev1.PersistentVolume, node lostNode) (reconcile.Result, error) {
	var failed []error
	counts := map[lostCount]int{}
	for _, volume := range volumes {
		action, err := r.handle(ctx, name, volume, node)
		if err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", volume.Name, err))
		}
		if state := stateOf(action); state != "" {
			counts[lostCount{volume.Annotations[volumehelpers.AnnDynamicallyProvisioned], state}]++
		}
	}
	r.counts.Set(name, counts)
	switch {
	case len(failed) > 0:
		return reconcile.Result{}, errors.Join(failed...)
	case node.Present:
		return reconcile.Result{}, nil
	}
	if left := node.left(r.Clock.Now()); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	return reconcile.Result{RequeueAfter: lostReportInterval}, nil
}

// handle does what is to be done with one volume of the node.
func (r *LostNodeReconciler) handle(ctx context.Context, name string, volume *corev1.PersistentVolume, node lostNode) (lostAction, error) {
	claim, err := claimOf(ctx, r.Client, volume)
	if err != nil {
		return lostWait, err
	}
	node.Present = node.Present || r.isServed(volume)
	action := decideLost(volume, claim, decideVolume(volume, claim), node, r.Clock.Now())
	switch action {
	case lostMark:
		log.FromContext(ctx).Info("The volume's node was deleted", "volume", volume.Name, "grace", node.left(r.Clock.Now()).String())
		return action, r.mark(ctx, volume, ptr.To(node.Since.UTC().Format(time.RFC3339)))
	case lostUnmark:
		log.FromContext(ctx).Info("The volume's node is back, or another one has its pool", "volume", volume.Name)
		r.forget(volume)
		return action, r.mark(ctx, volume, nil)
	case lostReport:
		r.report(name, volume, claim, node)
	case lostDrop:
		return action, r.drop(ctx, name, volume, node)
	}
	return action, nil
}

// isServed reports whether another node has the volume's pool: the node was renamed,
// or its disk was moved. Then it is not lost; PoolWatcher tells of it.
func (r *LostNodeReconciler) isServed(volume *corev1.PersistentVolume) bool {
	return servingNodeOf(r.Drivers, volume) != nodeOf(r.Drivers, volume)
}

// meetNodes has those who know pools by their ids ask the nodes that have not said
// lately what they have: one of them may have the pools of a node that is gone. One
// that does not answer is not waited for.
func (r *LostNodeReconciler) meetNodes(ctx context.Context) {
	for _, name := range r.Drivers.Names() {
		keeper, ok := poolKeeper(r.Drivers, name)
		if !ok {
			continue
		}
		if err := keeper.MeetNodes(ctx); err != nil {
			log.FromContext(ctx).V(1).Info("Some nodes did not say which pools they have", "reason", err.Error())
		}
	}
}

// mark records on this very volume since when its node is gone; nil for that it
// is not.
func (r *LostNodeReconciler) mark(ctx context.Context, volume *corev1.PersistentVolume, since *string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": volume.UID, "annotations": map[string]any{annNodeLostSince: since},
	}})
	if err != nil {
		return fmt.Errorf("encode annotation: %w", err)
	}
	err = r.Client.Patch(ctx, volume.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another one by now, and the change brings it back
	}
	if err != nil {
		return fmt.Errorf("write annotation %s: %w", annNodeLostSince, err)
	}
	return nil
}

// report tells claim, now and then, that the node of its volume is gone.
func (r *LostNodeReconciler) report(name string, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, node lostNode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.reported[volume.UID]; ok && r.Clock.Since(at) < lostReportInterval {
		return
	}
	r.reported[volume.UID] = r.Clock.Now()
	warn(r.Events, claim, reasonNodeLost, actionReclaim,
		"Node %q, which holds volume %s, was deleted (noticed %s); pods with this claim can't run until a Node of that name is back. To begin anew with an empty volume, delete the claim and its pods",
		name, volume.Name, node.Since.UTC().Format(time.RFC3339))
}

func (r *LostNodeReconciler) forget(volume *corev1.PersistentVolume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reported, volume.UID)
}

// drop lets go of the volume's object, after it has asked the API server
// whether all that speaks for it is still so. The node comes last, since that it
// comes back is what must not be missed.
func (r *LostNodeReconciler) drop(ctx context.Context, name string, cached *corev1.PersistentVolume, node lostNode) error {
	volume := &corev1.PersistentVolume{}
	if err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(cached), volume); err != nil {
		return client.IgnoreNotFound(err)
	}
	claim, err := claimOf(ctx, r.APIReader, volume)
	if err != nil {
		return err
	}
	if node.Present, err = nodeExists(ctx, r.APIReader, name); err != nil {
		return err
	}
	node.Present = node.Present || r.isServed(volume)
	if volume.UID != cached.UID || nodeOf(r.Drivers, volume) != name ||
		decideLost(volume, claim, decideVolume(volume, claim), node, r.Clock.Now()) != lostDrop {
		return nil // what has changed brings it back
	}
	warn(r.Events, volume, reasonNodeLost, actionReclaim,
		"Node %q, which holds the volume, was deleted (noticed %s) and is not back; the volume is dropped, its storage was not deleted",
		name, node.Since.UTC().Format(time.RFC3339))
	if err := deleteVolumeObject(ctx, r.Client, volume); err != nil {
		return err
	}
	driver := volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]
	r.Metrics.lostDropped.WithLabelValues(driver).Inc()
	r.forget(volume)
	o := volumeOutcome(r.Drivers, volume, node.Since)
	o.node, o.volume = "", volume.Name // the reconciler's requests are nodes
	log.FromContext(ctx).Info("Dropped a volume of a deleted node", o.keys(r.Clock.Now())...)
	return nil
}

// lostCount is what volumes on deleted Nodes are counted by.
type lostCount struct{ driver, state string }

// stateOf names what a volume on a deleted Node waits for; "" when it does not.
func stateOf(action lostAction) string {
	switch action {
	case lostMark, lostWait:
		return "waiting"
	case lostReport:
		return "bound"
	case lostKeep:
		return "retained"
	}
	return ""
}

// lostCounts sums up the volumes of all deleted Nodes.
type lostCounts struct {
	metrics *Metrics

	mu    sync.Mutex
	nodes map[string]map[lostCount]int
}

// Set records the volumes on a Node; none when it is not deleted.
func (c *lostCounts) Set(node string, counts map[lostCount]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(counts) == 0 {
		delete(c.nodes, node)
	} else {
		c.nodes[node] = counts
	}
	c.metrics.lostNodes.Set(float64(len(c.nodes)))
	sums := map[lostCount]int{}
	for _, counts := range c.nodes {
		for key, count := range counts {
			sums[key] += count
		}
	}
	c.metrics.lostVolumes.Reset()
	for key, sum := range sums {
		c.metrics.lostVolumes.WithLabelValues(key.driver, key.state).Set(float64(sum))
	}
}
