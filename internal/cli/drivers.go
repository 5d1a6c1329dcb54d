package cli

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/provisioner/request"
)

// parsePools reads --pool.
func (o *controllerOptions) parsePools() error {
	o.poolPaths = map[string]string{}
	for _, value := range o.pools {
		name, path, err := hostpath.ParsePool(value)
		if err != nil {
			return fmt.Errorf("--pool=%s: %w", value, err)
		}
		if _, twice := o.poolPaths[name]; twice {
			return fmt.Errorf("--pool=%s: pool %q is given twice", value, name)
		}
		o.poolPaths[name] = path
	}
	return nil
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
func (o *controllerOptions) setupDrivers(mgr manager.Manager, drivers *provisioner.Registry) error {
	series := provisioner.NewMetrics(metrics.Registry)
	if len(o.pools) > 0 {
		driver, err := o.newHostpath(mgr)
		if err != nil {
			return fmt.Errorf("set up driver %s: %w", hostpath.Name, err)
		}
		if err := drivers.Register(hostpath.Name, provisioner.Instrument(driver, series)); err != nil {
			return err
		}
	}
	driver, err := o.newNFS(mgr)
	if err != nil {
		return fmt.Errorf("set up driver %s: %w", nfs.Name, err)
	}
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

func (o *controllerOptions) newHostpath(mgr manager.Manager) (*hostpath.Driver, error) {
	return hostpath.New(hostpath.Options{
		NodeName: o.nodeName,
		Pools:    o.poolPaths,
		NodeLabels: func(ctx context.Context) (map[string]string, error) {
			node := &corev1.Node{}
			if err := mgr.GetClient().Get(ctx, client.ObjectKey{Name: o.nodeName}, node); err != nil {
				return nil, fmt.Errorf("read node %q (--node-name): %w", o.nodeName, err)
			}
			return node.Labels, nil
		},
		PoolInUse:    o.poolInUse(mgr.GetAPIReader()),
		RequireMount: o.requireMount,
		Log:          mgr.GetLogger().WithName("hostpath"),
	})
}

// poolInUse tells whether volumes of a pool of this node exist. It asks the API
// server, and is asked only when a pool's directory looks new.
func (o *controllerOptions) poolInUse(reader client.Reader) func(context.Context, string) (bool, error) {
	return func(ctx context.Context, pool string) (bool, error) {
		volumes := &corev1.PersistentVolumeList{}
		if err := reader.List(ctx, volumes); err != nil {
			return false, fmt.Errorf("list volumes: %w", err)
		}
		return slices.ContainsFunc(volumes.Items, func(v corev1.PersistentVolume) bool {
			return v.Annotations[request.AnnDriver] == hostpath.Name &&
				v.Annotations[hostpath.AnnNode] == o.nodeName && v.Annotations[hostpath.AnnPool] == pool
		}), nil
	}
}

// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,resourceNames=kube-system,verbs=get

func (o *controllerOptions) newNFS(mgr manager.Manager) (*nfs.Driver, error) {
	reader := mgr.GetClient()
	return nfs.New(nfs.Options{
		Mounts:        o.nfsMountPaths,
		AnswerTimeout: o.nfsAnswerTimeout,
		PurgeRate:     rate.Limit(o.nfsPurgeRate),
		Cluster:       clusterID(mgr.GetAPIReader()),
		Log:           mgr.GetLogger().WithName("nfs"),
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
