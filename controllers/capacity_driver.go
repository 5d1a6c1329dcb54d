package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagev1ac "k8s.io/client-go/applyconfigurations/storage/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/provisioner"
)

// capacityNodesInterval is the time between two looks at which nodes a driver
// has storage on. The driver knows without asking anybody.
const capacityNodesInterval = 2 * time.Second

// follow queues nodes as drivers come to have storage on them, and looks after
// the drivers' CSIDriver objects, until ctx ends.
func (p *CapacityPublisher) follow(ctx context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	go func() {
		p.Metrics.capacity.follow(p)
		checked := map[string]time.Time{}
		ticker := p.Clock.NewTicker(capacityNodesInterval)
		defer ticker.Stop()
		for {
			for _, name := range nodeLocalNames(p.Drivers) {
				if err := p.followDriver(ctx, name, checked, q); err != nil && ctx.Err() == nil {
					log.FromContext(ctx).Error(err, "Follow the nodes of a driver", "driver", name)
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C():
			}
		}
	}()
	return nil
}

// followDriver has kube-scheduler look at the driver's capacity once all nodes
// that it has at first were looked at: before that, there would seem to be no
// room anywhere. checked is when each CSIDriver object was looked at.
func (p *CapacityPublisher) followDriver(ctx context.Context, name string, checked map[string]time.Time, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	complete := p.nodes.Complete(name)
	if at, ok := checked[name]; !ok || p.Clock.Since(at) >= p.Interval || complete && !p.nodes.On(name) {
		owner, on, err := p.keepDriver(ctx, name, complete)
		if err != nil {
			return err
		}
		checked[name] = p.Clock.Now()
		for _, target := range p.nodes.SetOwner(name, owner) {
			q.Add(target)
		}
		p.nodes.SetOn(name, on)
	}
	local, _ := p.nodeLocal(name)
	names, err := local.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, target := range p.nodes.SetNodes(name, names) {
		q.Add(target)
	}
	return nil
}

// The rights are those of a driver's own object: server-side apply may create
// where its name is all that a role grants.
// +kubebuilder:rbac:groups=storage.k8s.io,resources=csidrivers,resourceNames=hostpath.berth.storage,verbs=get;create;patch;delete

// keepDriver makes sure that there is a CSIDriver object under the driver's
// name, and that kube-scheduler looks at the driver's capacity when on says so.
// It is not turned off here.
func (p *CapacityPublisher) keepDriver(ctx context.Context, name string, on bool) (metav1.OwnerReference, bool, error) {
	driver, err := readCSIDriver(ctx, p.APIReader, name)
	if err != nil {
		return metav1.OwnerReference{}, false, err
	}
	is := driver != nil && ptr.Deref(driver.Spec.StorageCapacity, false)
	if driver == nil || on && !is {
		if err := applyCSIDriver(ctx, p.Client, name, on); err != nil {
			return metav1.OwnerReference{}, false, err
		}
		if driver, err = readCSIDriver(ctx, p.APIReader, name); err != nil {
			return metav1.OwnerReference{}, false, err
		}
		if driver == nil {
			return metav1.OwnerReference{}, false, fmt.Errorf("the CSIDriver object %q was deleted as soon as it was made", name)
		}
		log.FromContext(ctx).Info("Wrote the CSIDriver object", "driver", name, "storageCapacity", on)
	}
	return metav1.OwnerReference{APIVersion: storagev1.SchemeGroupVersion.String(), Kind: "CSIDriver", Name: name, UID: driver.UID}, is || on, nil
}

// readCSIDriver returns the object, nil when there is none.
func readCSIDriver(ctx context.Context, reader client.Reader, name string) (*storagev1.CSIDriver, error) {
	driver := &storagev1.CSIDriver{}
	err := reader.Get(ctx, types.NamespacedName{Name: name}, driver)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the CSIDriver object %q: %w", name, err)
	}
	return driver, nil
}

// applyCSIDriver writes what matters of the object. Its volumes are no CSI
// volumes, so there is nothing to attach, and all else may be as it likes.
func applyCSIDriver(ctx context.Context, c client.Client, name string, storageCapacity bool) error {
	driver, err := json.Marshal(storagev1ac.CSIDriver(name).WithSpec(storagev1ac.CSIDriverSpec().
		WithAttachRequired(false).
		WithStorageCapacity(storageCapacity)))
	if err != nil {
		return fmt.Errorf("encode the CSIDriver object: %w", err)
	}
	// Client.Apply would do, could it read protobuf.
	object := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Patch(ctx, object, client.RawPatch(types.ApplyPatchType, driver), client.FieldOwner(component), client.ForceOwnership); err != nil {
		return fmt.Errorf("write the CSIDriver object %q: %w", name, err)
	}
	return nil
}

// CapacityRemover takes back what a CapacityPublisher published: it is what runs
// when capacity is not to be published.
type CapacityRemover struct {
	// Client writes to the API server.
	Client client.Client
	// APIReader reads from the API server.
	APIReader client.Reader
	// Drivers that are NodeLocal are those whose capacity was published.
	Drivers *provisioner.Registry
	// Namespace is where the objects are: Berth's own.
	Namespace string
	// Clock is the time of retries.
	Clock clock.WithTicker
}

// NeedLeaderElection is true: a standby that is configured otherwise must not
// undo what the leader does.
func (r *CapacityRemover) NeedLeaderElection() bool { return true }

// Start tries until everything is gone, or ctx ends.
func (r *CapacityRemover) Start(ctx context.Context) error {
	ticker := r.Clock.NewTicker(DefaultCapacityInterval)
	defer ticker.Stop()
	for {
		var failed []error
		for _, name := range nodeLocalNames(r.Drivers) {
			failed = append(failed, r.remove(ctx, name))
		}
		err := errors.Join(failed...)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "Remove what was published of capacities")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// +kubebuilder:rbac:groups=storage.k8s.io,namespace=berth-system,resources=csistoragecapacities,verbs=deletecollection

// remove has kube-scheduler no longer look at capacities first, so that at no
// moment it looks and finds none.
func (r *CapacityRemover) remove(ctx context.Context, name string) error {
	driver, err := readCSIDriver(ctx, r.APIReader, name)
	if err != nil {
		return err
	}
	if driver != nil && ptr.Deref(driver.Spec.StorageCapacity, false) {
		if err := applyCSIDriver(ctx, r.Client, name, false); err != nil {
			return err
		}
		log.FromContext(ctx).Info("Turned off capacity-aware scheduling", "driver", name)
	}
	if err := r.Client.DeleteAllOf(ctx, &storagev1.CSIStorageCapacity{}, client.InNamespace(r.Namespace), client.MatchingLabels{labelCapacityDriver: name}); err != nil {
		return fmt.Errorf("delete capacity objects of %s: %w", name, err)
	}
	if driver == nil {
		return nil
	}
	if err := r.Client.Delete(ctx, driver, client.Preconditions{UID: &driver.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete the CSIDriver object %q: %w", name, err)
	}
	return nil
}
