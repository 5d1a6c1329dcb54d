package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-storage/berth/provisioner"
)

// CapacityPublisher tells kube-scheduler how much room there is: it keeps a
// CSIStorageCapacity object for each class and node of the drivers that are
// provisioner.NodeLocal, and a CSIDriver object under each driver's name that
// has kube-scheduler look at them. It asks the driver at an interval, and
// about one node right after a volume came, went or grew there. A request is the
// driver (as the namespace) and the node.
//
// The number of its watches does not depend on the number of nodes.
type CapacityPublisher struct {
	// Client reads from the cache and writes to the API server. The cache has to
	// hold CSIStorageCapacity objects as CapacityCache says.
	Client client.Client
	// APIReader reads from the API server.
	APIReader client.Reader
	// Drivers that are NodeLocal are asked.
	Drivers *provisioner.Registry
	// Namespace is where the objects are: Berth's own.
	Namespace string
	// Interval is the time between two looks at a node that nothing is known to
	// have happened to.
	Interval time.Duration
	// OutageGrace is how long a node that can't be asked keeps the room that it
	// had. Then it has none.
	OutageGrace time.Duration
	// Writes is how many objects are written a second at most.
	Writes rate.Limit
	// Metrics counts what is published.
	Metrics *Metrics
	// Clock is the time of looks and outages.
	Clock clock.WithTicker

	limiter *rate.Limiter
	nodes   *capacityNodes
}

// The defaults of CapacityPublisher.
const (
	// DefaultCapacityInterval is that of external-provisioner.
	DefaultCapacityInterval = time.Minute
	// DefaultCapacityOutageGrace covers the restart of an agent, and of the node
	// below it when that is quick.
	DefaultCapacityOutageGrace = 2 * time.Minute
	// DefaultCapacityWrites publishes 5,000 nodes anew in less than two minutes a
	// class, and is little to an API server.
	DefaultCapacityWrites = rate.Limit(50)
)

const (
	// capacityWorkers is how many nodes are asked at a time.
	capacityWorkers = 16
	// capacityTimeout is how long a node may take to say how much room it has
	// for all classes. A driver should know sooner that a node is silent; this is
	// for those that know no timeout.
	capacityTimeout = 30 * time.Second
	// indexCapacityNode finds CSIStorageCapacity objects by driver/node.
	indexCapacityNode = "berth.capacityNode"
)

// CapacityCache returns what the manager's cache needs to hold of
// CSIStorageCapacity objects: Berth's own, in its namespace. So one watch, and
// rights in that namespace, suffice.
func CapacityCache(namespace string) cache.ByObject {
	ours, err := labels.NewRequirement(labelCapacityDriver, selection.Exists, nil)
	if err != nil {
		panic(err) // the label is misspelt above
	}
	return cache.ByObject{Namespaces: map[string]cache.Config{
		namespace: {LabelSelector: labels.NewSelector().Add(*ours)},
	}}
}

// +kubebuilder:rbac:groups="",resources=nodes;persistentvolumes,verbs=get;list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,namespace=berth-system,resources=csistoragecapacities,verbs=list;watch;create;patch;delete

// SetupWithManager registers the publisher.
func (p *CapacityPublisher) SetupWithManager(ctx context.Context, mgr ctrl.Manager) error {
	switch {
	case p.Client == nil || p.APIReader == nil || p.Drivers == nil || p.Metrics == nil || p.Clock == nil:
		return errors.New("set up capacity publisher: Client, APIReader, Drivers, Metrics and Clock are required")
	case p.Namespace == "":
		return errors.New("set up capacity publisher: Namespace is required")
	case p.Interval <= 0 || p.OutageGrace <= 0 || p.Writes <= 0:
		return errors.New("set up capacity publisher: Interval, OutageGrace and Writes must be more than 0")
	}
	p.limiter = rate.NewLimiter(p.Writes, max(1, int(p.Writes)))
	p.nodes = newCapacityNodes(p.Clock)
	if err := mgr.GetFieldIndexer().IndexField(ctx, &storagev1.CSIStorageCapacity{}, indexCapacityNode, capacityNodeKeys); err != nil {
		return fmt.Errorf("index %s: %w", indexCapacityNode, err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("capacity").
		WatchesRawSource(source.Func(p.follow)).
		Watches(&corev1.PersistentVolume{}, p.volumeEvents()).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(p.targetsOfNode), builder.WithPredicates(nodeMoves)).
		Watches(&storagev1.StorageClass{}, p.classEvents()).
		Watches(&storagev1.CSIStorageCapacity{}, p.objectEvents()).
		WithOptions(controllerOptions(mgr, "target", capacityWorkers)).
		Complete(p)
}

func capacityNodeKeys(o client.Object) []string {
	return []string{o.GetLabels()[labelCapacityDriver] + "/" + o.GetAnnotations()[annCapacityNode]}
}

// volumeEvents queues the node of a volume that came, went or grew. Those that
// were there at the start say nothing.
func (p *CapacityPublisher) volumeEvents() handler.Funcs {
	changed := func(o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		volume, ok := o.(*corev1.PersistentVolume)
		if !ok {
			return
		}
		if target := p.targetOf(volume); target.Name != "" {
			p.nodes.Changed(target)
			q.Add(target)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			if !e.IsInInitialList {
				changed(e.Object, q)
			}
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			before, ok := e.ObjectOld.(*corev1.PersistentVolume)
			after, ok2 := e.ObjectNew.(*corev1.PersistentVolume)
			if ok && ok2 && compareSizes(before.Spec.Capacity, after.Spec.Capacity) != 0 {
				changed(after, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			changed(e.Object, q)
		},
	}
}

// targetOf returns the request for the node that holds volume; one without a
// name when volume is tied to none.
func (p *CapacityPublisher) targetOf(volume *corev1.PersistentVolume) reconcile.Request {
	name := volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]
	local, ok := p.nodeLocal(name)
	if !ok {
		return reconcile.Request{}
	}
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: name, Name: local.NodeOf(volume)}}
}

func (p *CapacityPublisher) nodeLocal(name string) (provisioner.NodeLocal, bool) {
	return nodeLocalDriver(p.Drivers, name)
}

// nodeMoves passes the moments at which kube-scheduler would find another node,
// or none, by what is published.
var nodeMoves = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetLabels()[corev1.LabelHostname] != e.ObjectNew.GetLabels()[corev1.LabelHostname]
	},
	GenericFunc: func(event.GenericEvent) bool { return false },
}

func (p *CapacityPublisher) targetsOfNode(_ context.Context, o client.Object) []reconcile.Request {
	var targets []reconcile.Request
	for _, driver := range nodeLocalNames(p.Drivers) {
		targets = append(targets, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: driver, Name: o.GetName()}})
	}
	return targets
}

// classEvents queues all nodes when a class comes or goes. Of one that exists
// nothing can be changed that matters here.
func (p *CapacityPublisher) classEvents() handler.Funcs {
	changed := func(o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		if class, ok := o.(*storagev1.StorageClass); ok {
			for _, target := range p.nodes.Of(class.Provisioner) {
				q.Add(target)
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			if !e.IsInInitialList {
				changed(e.Object, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			changed(e.Object, q)
		},
	}
}

// objectEvents queues the targets of objects that were there at the start, and
// of those that are deleted, by whomever.
func (p *CapacityPublisher) objectEvents() handler.Funcs {
	requeue := func(o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		q.Add(reconcile.Request{NamespacedName: types.NamespacedName{
			Namespace: o.GetLabels()[labelCapacityDriver], Name: o.GetAnnotations()[annCapacityNode],
		}})
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			if e.IsInInitialList {
				requeue(e.Object, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			requeue(e.Object, q)
		},
	}
}

// Reconcile publishes the room of one driver on one node.
func (p *CapacityPublisher) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if _, ok := p.nodeLocal(req.Namespace); !ok {
		return reconcile.Result{}, nil // an object that names a driver there is no more
	}
	defer p.nodes.Looked(req)
	owner, ready := p.nodes.Owner(req.Namespace)
	if !ready {
		return reconcile.Result{RequeueAfter: time.Second}, nil // the CSIDriver is still to be made
	}
	target := capacityTarget{Driver: req.Namespace, Node: req.Name, Namespace: p.Namespace, Owner: owner}
	existing, err := p.existing(ctx, req)
	if err != nil {
		return reconcile.Result{}, err
	}
	served := p.nodes.Has(req)
	if !served && len(existing) == 0 {
		p.nodes.Forget(req)
		return reconcile.Result{}, nil
	}
	if target.Hostname, err = p.hostname(ctx, req.Name); err != nil {
		return reconcile.Result{}, err
	}
	var readings []capacityReading
	if target.Hostname != "" {
		if readings, err = p.read(ctx, req); err != nil {
			return reconcile.Result{}, err
		}
	}
	failed := p.failure(ctx, readings)
	outage := p.nodes.Outage(req, failed != nil)
	if !served && outage >= p.OutageGrace {
		readings = nil
	}
	err = p.write(ctx, planCapacity(target, readings, existing, outage, p.OutageGrace))
	switch {
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		return reconcile.Result{RequeueAfter: time.Second}, nil // the cache is behind
	case err != nil:
		return reconcile.Result{}, err
	}
	return p.next(req, failed, outage), nil
}

// next says when to look at the node again. A look that nobody waits for gives
// way to those that follow a change.
func (p *CapacityPublisher) next(req reconcile.Request, failed error, outage time.Duration) reconcile.Result {
	low := handler.LowPriority
	wait := nextLook(p.nodes.SinceChange(req), p.Interval)
	if failed != nil {
		wait = nextLook(outage, p.Interval)
		if after, ok := provisioner.RetryAfter(failed); ok {
			wait = max(wait, after)
		}
		if outage < p.OutageGrace {
			wait = min(wait, p.OutageGrace-outage+time.Second)
		}
	}
	// Looks at many nodes that began together drift apart.
	wait += rand.N(wait/8 + 1) //nolint:gosec // no secret
	return reconcile.Result{RequeueAfter: wait, Priority: &low}
}

// existing lists what is published for a target. The objects are the cache's own.
func (p *CapacityPublisher) existing(ctx context.Context, req reconcile.Request) ([]*storagev1.CSIStorageCapacity, error) {
	var list storagev1.CSIStorageCapacityList
	if err := p.Client.List(ctx, &list, client.InNamespace(p.Namespace), client.MatchingFields{indexCapacityNode: req.String()}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list capacity objects: %w", err)
	}
	objects := make([]*storagev1.CSIStorageCapacity, len(list.Items))
	for i := range list.Items {
		objects[i] = &list.Items[i]
	}
	return objects, nil
}

// hostname returns the label by which kube-scheduler finds the node; "" when the
// node is gone or has none.
func (p *CapacityPublisher) hostname(ctx context.Context, name string) (string, error) {
	node := &corev1.Node{}
	err := p.Client.Get(ctx, types.NamespacedName{Name: name}, node)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read node %q: %w", name, err)
	}
	if node.Labels[corev1.LabelHostname] == "" {
		log.FromContext(ctx).Info("The node has no label "+corev1.LabelHostname+", so its capacity can't be published", "node", name)
	}
	return node.Labels[corev1.LabelHostname], nil
}

// read asks the driver about the node, for each class whose pods kube-scheduler
// places by room.
func (p *CapacityPublisher) read(ctx context.Context, req reconcile.Request) ([]capacityReading, error) {
	local, _ := p.nodeLocal(req.Namespace)
	classes, err := p.classes(ctx, req.Namespace)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, capacityTimeout)
	defer cancel()
	var readings []capacityReading
	for _, class := range classes {
		reading := capacityReading{Class: class.Name, Err: errNoStorage}
		if p.nodes.Has(req) {
			reading.Capacity, reading.Err = local.Capacity(ctx, class, req.Name)
		}
		readings = append(readings, reading)
	}
	return readings, nil
}

// errNoStorage is what is known of a node that the driver does not name, for now.
var errNoStorage = errors.New("the driver has no storage on the node")

// classes lists the driver's classes that wait for their first consumer. They
// are the cache's own.
func (p *CapacityPublisher) classes(ctx context.Context, driver string) ([]*storagev1.StorageClass, error) {
	var list storagev1.StorageClassList
	if err := p.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list classes: %w", err)
	}
	var classes []*storagev1.StorageClass
	for i := range list.Items {
		if class := &list.Items[i]; class.Provisioner == driver && waitsForConsumer(class) {
			classes = append(classes, class)
		}
	}
	return classes, nil
}

// failure returns the first error that says that the node could not be asked.
func (p *CapacityPublisher) failure(ctx context.Context, readings []capacityReading) error {
	for _, r := range readings {
		if r.Err != nil && !provisioner.IsInfeasible(r.Err) {
			log.FromContext(ctx).V(1).Info("The node's capacity is unknown", "class", r.Class, "reason", r.Err.Error())
			return r.Err
		}
	}
	return nil
}

// write carries out plan, at no more than p.Writes.
func (p *CapacityPublisher) write(ctx context.Context, plan capacityPlan) error {
	steps := []struct {
		name    string
		objects []*storagev1.CSIStorageCapacity
		do      func(context.Context, *storagev1.CSIStorageCapacity) error
	}{
		{"create", plan.Create, func(ctx context.Context, o *storagev1.CSIStorageCapacity) error { return p.Client.Create(ctx, o) }},
		{"update", plan.Update, p.patch},
		{"delete", plan.Delete, func(ctx context.Context, o *storagev1.CSIStorageCapacity) error {
			return client.IgnoreNotFound(p.Client.Delete(ctx, o.DeepCopy(), client.Preconditions{UID: &o.UID}))
		}},
	}
	for _, step := range steps {
		for _, o := range step.objects {
			if err := p.limiter.Wait(ctx); err != nil {
				return err
			}
			if err := step.do(ctx, o); err != nil {
				return fmt.Errorf("%s capacity object %s of class %s: %w", step.name, o.Name, o.StorageClassName, err)
			}
			p.Metrics.capacityWrites.WithLabelValues(step.name).Inc()
		}
	}
	return nil
}

// patch writes what may change of o into the object of the same UID.
func (p *CapacityPublisher) patch(ctx context.Context, o *storagev1.CSIStorageCapacity) error {
	patch, err := json.Marshal(map[string]any{
		"metadata":          map[string]any{"uid": o.UID, "ownerReferences": o.OwnerReferences},
		"capacity":          o.Capacity,
		"maximumVolumeSize": o.MaximumVolumeSize,
	})
	if err != nil {
		return fmt.Errorf("encode capacity: %w", err)
	}
	return p.Client.Patch(ctx, o, client.RawPatch(types.MergePatchType, patch))
}
