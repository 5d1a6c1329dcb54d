package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/time/rate"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/berth-storage/berth/controllers"
	"github.com/berth-storage/berth/provisioner"
)

// nodeLocalOptions are the controller's flags for what volumes on nodes need:
// capacity-aware scheduling, and the end of nodes.
type nodeLocalOptions struct {
	capacity          bool
	capacityNamespace string
	capacityInterval  time.Duration
	capacityGrace     time.Duration
	capacityQPS       float64

	lostNodeGrace time.Duration
}

func (o *nodeLocalOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.capacity, "storage-capacity", true, "tell kube-scheduler how much room each node has, so that pods are placed where their volumes fit; false takes back what was told")
	f.StringVar(&o.capacityNamespace, "storage-capacity-namespace", "", "namespace of the CSIStorageCapacity objects (default: that of --agent-namespace, the pod, or --leader-elect-namespace; without any nothing is told)")
	f.DurationVar(&o.capacityInterval, "storage-capacity-interval", controllers.DefaultCapacityInterval, "time between two looks at the room of a node on which no volume came or went")
	f.DurationVar(&o.capacityGrace, "storage-capacity-outage-grace", controllers.DefaultCapacityOutageGrace, "how long a node that can't be asked keeps the room it had; then kube-scheduler is told that it has none")
	f.Float64Var(&o.capacityQPS, "storage-capacity-qps", float64(controllers.DefaultCapacityWrites), "how many CSIStorageCapacity objects are written a second at most")
	f.DurationVar(&o.lostNodeGrace, "lost-node-grace", controllers.DefaultLostNodeGrace, "how long a deleted Node has to come back before the volumes on it that nobody claims are dropped")
}

func (o *nodeLocalOptions) validate() error {
	switch {
	case o.capacityInterval <= 0:
		return fmt.Errorf("--storage-capacity-interval=%s: want more than 0; to publish no capacity use --storage-capacity=false", o.capacityInterval)
	case o.capacityGrace <= 0:
		return fmt.Errorf("--storage-capacity-outage-grace=%s: want more than 0", o.capacityGrace)
	case o.capacityQPS <= 0:
		return fmt.Errorf("--storage-capacity-qps=%g: want more than 0", o.capacityQPS)
	case o.lostNodeGrace <= 0:
		return fmt.Errorf("--lost-node-grace=%s: want more than 0", o.lostNodeGrace)
	}
	return nil
}

// namespace returns where CSIStorageCapacity objects are, "" when nothing says.
// agents and lease are the namespaces that other flags name.
func (o *nodeLocalOptions) namespace(agents, lease string) string {
	if o.capacityNamespace != "" || agents != "" {
		return cmp.Or(o.capacityNamespace, agents)
	}
	if text, err := os.ReadFile(namespaceFile); err == nil {
		return strings.TrimSpace(string(text))
	}
	return lease
}

// addToCache adds what the manager's cache has to hold.
func (o *nodeLocalOptions) addToCache(options *cache.Options, namespace string) {
	if o.capacity && namespace != "" {
		options.ByObject[&storagev1.CSIStorageCapacity{}] = controllers.CapacityCache(namespace)
	}
}

// setup adds to mgr what the drivers that have volumes on nodes need.
func (o *nodeLocalOptions) setup(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry, recorder events.EventRecorder, series *controllers.Metrics, namespace string) error {
	if !controllers.HasNodeLocal(drivers) {
		return nil
	}
	if err := o.setupCapacity(ctx, mgr, drivers, series, namespace); err != nil {
		return err
	}
	pools := &controllers.PoolWatcher{
		Client: mgr.GetClient(), Drivers: drivers, Events: recorder, Metrics: series, Clock: clock.RealClock{}, Interval: controllers.DefaultPoolInterval,
	}
	if err := mgr.Add(pools); err != nil {
		return err
	}
	lost := &controllers.LostNodeReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Metrics: series,
		Clock: clock.RealClock{}, Grace: o.lostNodeGrace,
	}
	return lost.SetupWithManager(ctx, mgr)
}

func (o *nodeLocalOptions) setupCapacity(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry, series *controllers.Metrics, namespace string) error {
	switch {
	case namespace == "":
		mgr.GetLogger().Info("kube-scheduler is not told how much room there is: no --storage-capacity-namespace")
		return nil
	case !o.capacity:
		return mgr.Add(&controllers.CapacityRemover{
			Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Namespace: namespace, Clock: clock.RealClock{},
		})
	}
	publisher := &controllers.CapacityPublisher{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Namespace: namespace,
		Interval: o.capacityInterval, OutageGrace: o.capacityGrace, Writes: rate.Limit(o.capacityQPS),
		Metrics: series, Clock: clock.RealClock{},
	}
	return publisher.SetupWithManager(ctx, mgr)
}
