package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/berth-storage/berth/controllers"
	"github.com/berth-storage/berth/internal/health"
	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
)

// setupProbes serves /healthz and /readyz from the start of mgr on, before its
// caches are filled. found is nil when there are no agents.
func (o *controllerOptions) setupProbes(ctx context.Context, mgr manager.Manager, found *agents.Agents) error {
	if o.probeAddress == "0" {
		return nil
	}
	checks := []health.Check{
		{Name: "caches", Look: cachesSynced(mgr.GetCache())},
		{Name: "leader", Look: o.leading(mgr.Elected())},
	}
	if found != nil {
		checks = append(checks, health.Check{Name: "agents", Look: countAgents(found)})
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.probeAddress)
	if err != nil {
		return fmt.Errorf("--health-probe-bind-address: %w", err)
	}
	return mgr.Add(&manager.Server{
		Name:            "probes",
		Server:          &http.Server{Handler: health.Mux(checks...), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second},
		Listener:        listener,
		ShutdownTimeout: ptr.To(time.Second),
	})
}

func cachesSynced(c cache.Cache) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if !c.WaitForCacheSync(ctx) {
			return "", errors.New("not synced with the API server")
		}
		return "synced", nil
	}
}

// leading tells what this replica does. Those that wait are ready too: they are
// ready to take over.
func (o *controllerOptions) leading(elected <-chan struct{}) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if !o.leaderElect {
			return "leader, as there is no election", nil
		}
		select {
		case <-elected:
			return "leader", nil
		default:
			return "standby", nil
		}
	}
}

// countAgents tells how many agents there are. It never fails: nothing about this
// pod is better or worse for an agent that is down.
func countAgents(found *agents.Agents) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		count, err := found.Count(ctx)
		if err != nil {
			return "unknown: " + err.Error(), nil //nolint:nilerr // to tell is all there is to do
		}
		return fmt.Sprintf("%d of %d reachable (%d not ready, %d do not answer)",
			count.Ready, count.Ready+count.NotReady+count.Silent, count.NotReady, count.Silent), nil
	}
}

// warmCaches has a replica that waits to become the leader hold all that it will
// need then. The caches of controllers that were not started would be filled no
// earlier than that.
func (o *controllerOptions) warmCaches(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry) error {
	needed := []client.Object{&corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}, &storagev1.StorageClass{}}
	if controllers.HasNodeLocal(drivers) {
		needed = append(needed, &corev1.Node{})
		if o.nodeLocal.capacity && o.capacityNamespace() != "" {
			needed = append(needed, &storagev1.CSIStorageCapacity{})
		}
	}
	for _, object := range needed {
		if _, err := mgr.GetCache().GetInformer(ctx, object, cache.BlockUntilSynced(false)); err != nil {
			return fmt.Errorf("fill the cache with %T: %w", object, err)
		}
	}
	return nil
}
