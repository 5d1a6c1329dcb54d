package cli

import (
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"sync"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-storage/berth/controllers"
	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/quota"
	"github.com/berth-storage/berth/provisioner/nfs"
)

// poolOptions are the flags that say what a node has to offer.
type poolOptions struct {
	pools        []string
	reserve      string
	overcommit   float64
	requireMount bool
	projectIDs   string
}

func (o *poolOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.pools, "pool", nil, "a directory to make volumes in, as NAME=/ABSOLUTE/PATH; may be repeated, with the same name for one more directory of that pool. A StorageClass chooses a pool by its parameter pool (default \"default\")")
	f.StringVar(&o.reserve, "pool-reserve", node.DefaultLimits.Reserve.String(), "what volumes may not be promised of each filesystem, as a size (10Gi) or a share (5%)")
	f.Float64Var(&o.overcommit, "pool-overcommit", node.DefaultLimits.Overcommit, "how often the size of each filesystem may be promised to volumes; 0 for no limit")
	f.StringVar(&o.projectIDs, "quota-project-ids", quota.DefaultRange.String(), "project ids that volumes may be given, as FIRST-LAST; others on these filesystems must not use them")
	f.BoolVar(&o.requireMount, "pool-require-mount", false, "refuse pool directories that are not the root of a mounted filesystem")
}

// nodeOptions reads the flags.
func (o *poolOptions) nodeOptions(nodeName string, log logr.Logger) (node.Options, error) {
	pools, err := node.ParsePools(o.pools)
	if err != nil {
		return node.Options{}, err
	}
	reserve, err := node.ParseReserve(o.reserve)
	if err != nil {
		return node.Options{}, fmt.Errorf("--pool-reserve: %w", err)
	}
	if !(o.overcommit >= 0) || math.IsInf(o.overcommit, 0) {
		return node.Options{}, fmt.Errorf("--pool-overcommit=%g: want 0 or more", o.overcommit)
	}
	ids, err := quota.ParseRange(o.projectIDs)
	if err != nil {
		return node.Options{}, fmt.Errorf("--quota-project-ids: %w", err)
	}
	return node.Options{
		NodeName:     nodeName,
		Quota:        quota.New(ids),
		Pools:        pools,
		Limits:       node.Limits{Reserve: reserve, Overcommit: o.overcommit},
		RequireMount: o.requireMount,
		Version:      buildVersion(),
		Log:          log,
	}, nil
}

// parseMounts reads --nfs-mount.
func (o *controllerOptions) parseMounts() error {
	o.nfsMountPaths = map[nfs.Share]string{}
	for _, value := range o.nfsMounts {
		share, path, err := nfs.ParseMount(value)
		if err != nil {
			return fmt.Errorf("--nfs-mount=%s: %w", value, err)
		}
		if _, twice := o.nfsMountPaths[share]; twice {
			return fmt.Errorf("--nfs-mount=%s: the share is given twice", value)
		}
		o.nfsMountPaths[share] = path
	}
	return nil
}

// setupDrivers registers the drivers. That of NFS needs nothing but classes to
// work, so it is always there.
func (o *controllerOptions) setupDrivers(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry) error {
	series := provisioner.NewMetrics(metrics.Registry)
	names := &controllers.DirectoryNames{Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers}
	if len(o.pools) > 0 || o.agents.enabled() {
		driver, err := o.newHostpath(ctx, mgr, names)
		if err != nil {
			return fmt.Errorf("set up driver %s: %w", hostpath.Name, err)
		}
		if err := drivers.Register(hostpath.Name, provisioner.Instrument(driver, series)); err != nil {
			return err
		}
	}
	driver, err := o.newNFS(mgr, names)
	if err != nil {
		return fmt.Errorf("set up driver %s: %w", nfs.Name, err)
	}
	metrics.Registry.MustRegister(nfs.NewCollector(driver))
	if err := drivers.Register(nfs.Name, provisioner.Instrument(driver, series)); err != nil {
		return err
	}
	for _, name := range drivers.Names() {
		driver, _ := drivers.Get(name)
		if worker, ok := provisioner.As[provisioner.BackgroundWorker](driver); ok {
			if err := mgr.Add(leaderRunnable(worker.Run)); err != nil {
				return fmt.Errorf("add background work of %s: %w", name, err)
			}
		}
	}
	return nil
}

// leaderRunnable runs on the elected leader only.
type leaderRunnable func(context.Context) error

func (r leaderRunnable) Start(ctx context.Context) error { return r(ctx) }
func (r leaderRunnable) NeedLeaderElection() bool        { return true }

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// newHostpath returns the driver for the pools of this node, or for those of all
// nodes with agents.
func (o *controllerOptions) newHostpath(ctx context.Context, mgr manager.Manager, names *controllers.DirectoryNames) (*hostpath.Driver, error) {
	log := mgr.GetLogger().WithName("hostpath")
	nodes, err := o.nodes(ctx, mgr, log)
	if err != nil {
		return nil, err
	}
	hint := " (--node-name)"
	if o.agents.enabled() {
		hint = ""
	}
	return hostpath.New(hostpath.Options{
		Nodes: nodes,
		Node: func(ctx context.Context, name string) (*corev1.Node, error) {
			found := &corev1.Node{}
			if err := mgr.GetClient().Get(ctx, client.ObjectKey{Name: name}, found, client.UnsafeDisableDeepCopy); err != nil {
				return nil, fmt.Errorf("read node %q%s: %w", name, hint, err)
			}
			return found, nil
		},
		InUse: directoryInUse(mgr.GetAPIReader()),
		NamedBy: func(ctx context.Context, node, poolID, base, inside, except string) (string, error) {
			directory := controllers.Directory{Path: path.Join(base, inside), Base: base, Node: node, Pool: poolID}
			return names.ClaimedBy(ctx, directory, except)
		},
		UnreachableAfter: o.agents.unreachableAfter,
		Log:              log,
	})
}

// nodes returns the way to the node servers: to agents, or to one in this process.
func (o *controllerOptions) nodes(ctx context.Context, mgr manager.Manager, log logr.Logger) (hostpath.Nodes, error) {
	if o.agents.enabled() {
		return o.agents.setup(ctx, mgr)
	}
	options, err := o.nodeOptions(o.nodeName, log)
	if err != nil {
		return nil, err
	}
	local, err := hostpath.NewLocal(options)
	if err != nil {
		return nil, err
	}
	metrics.Registry.MustRegister(node.NewCollector(local.NodeServer(), o.metrics.volumes))
	return local, nil
}

// directoryInUse tells whether volumes in a directory of a node exist. It asks the
// API server, and is asked only when a directory looks new. Those who ask while a
// list is on its way share it: in a new cluster that is every node. What it may
// miss is newer than the question, and nobody makes a volume in a directory that
// may not become a pool yet.
func directoryInUse(reader client.Reader) func(ctx context.Context, node, pool, directory string) (bool, error) {
	var lists singleflight.Group
	return func(ctx context.Context, node, pool, directory string) (bool, error) {
		listed, err, _ := lists.Do("", func() (any, error) {
			volumes := &corev1.PersistentVolumeList{}
			return volumes, reader.List(ctx, volumes)
		})
		volumes, ok := listed.(*corev1.PersistentVolumeList)
		if err != nil || !ok {
			return false, fmt.Errorf("list volumes: %w", err)
		}
		for i := range volumes.Items {
			if hostpath.LiesIn(&volumes.Items[i], node, pool, directory) {
				return true, nil
			}
		}
		return false, nil
	}
}

// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,resourceNames=kube-system,verbs=get

func (o *controllerOptions) newNFS(mgr manager.Manager, names *controllers.DirectoryNames) (*nfs.Driver, error) {
	reader := mgr.GetClient()
	return nfs.New(nfs.Options{
		Mounts:        o.nfsMountPaths,
		AnswerTimeout: o.nfsAnswerTimeout,
		PurgeRate:     rate.Limit(o.nfsPurgeRate),
		NamedBy: func(ctx context.Context, share nfs.Share, inside, except string) (string, error) {
			directory := controllers.Directory{Path: path.Join(share.Path, inside), Base: share.Path, Server: share.Server}
			return names.ClaimedBy(ctx, directory, except)
		},
		Cluster: clusterID(mgr.GetAPIReader()),
		Log:     mgr.GetLogger().WithName("nfs"),
		Classes: func(ctx context.Context) ([]storagev1.StorageClass, error) {
			classes := &storagev1.StorageClassList{}
			err := reader.List(ctx, classes, client.UnsafeDisableDeepCopy)
			return slices.DeleteFunc(slices.Clone(classes.Items), func(c storagev1.StorageClass) bool { return c.Provisioner != nfs.Name }), err
		},
		Volumes: func(ctx context.Context) ([]nfs.Volume, error) {
			list := &corev1.PersistentVolumeList{}
			if err := reader.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
				return nil, err
			}
			var volumes []nfs.Volume
			for i := range list.Items {
				if v, err := nfs.Describes(&list.Items[i]); err == nil {
					volumes = append(volumes, v)
				}
			}
			return volumes, nil
		},
	})
}

// clusterID returns what is as old as the cluster and as long-lived: the UID of
// its namespace kube-system.
func clusterID(reader client.Reader) func(context.Context) (string, error) {
	var (
		mu sync.Mutex
		id string
	)
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if id != "" {
			return id, nil
		}
		namespace := &corev1.Namespace{}
		if err := reader.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, namespace); err != nil {
			return "", fmt.Errorf("read namespace %s: %w", metav1.NamespaceSystem, err)
		}
		id = string(namespace.UID)
		return id, nil
	}
}
