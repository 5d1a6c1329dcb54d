package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner"
)

// Census counts the volumes of the drivers, and the claims that wait for one, on
// the elected leader: replicas that wait would show every volume again. Volumes
// are counted as they come and go, so that a scrape costs the same however many
// there are.
type Census struct {
	// Cache tells of volumes.
	Cache cache.Cache
	// Client reads claims and classes from the cache.
	Client client.Client
	// Drivers are whose volumes and claims count.
	Drivers *provisioner.Registry
	// Metrics shows what was counted.
	Metrics *Metrics
	// Clock is the time since which claims wait.
	Clock clock.PassiveClock

	mu      sync.Mutex
	volumes map[volumeKind]volumeSum
	// waiting holds since when claims are seen to wait.
	waiting map[types.UID]time.Time
}

// volumeKind is what volumes are counted by.
type volumeKind struct{ driver, class, phase string }

// volumeSum is how many there are of a kind, and of what size together.
type volumeSum struct {
	volumes int
	bytes   int64
}

// SetupWithManager adds the census to mgr.
func (c *Census) SetupWithManager(mgr ctrl.Manager) error {
	if c.Cache == nil || c.Client == nil || c.Drivers == nil || c.Metrics == nil || c.Clock == nil {
		return errors.New("set up census: Cache, Client, Drivers, Metrics and Clock are required")
	}
	return mgr.Add(c)
}

// NeedLeaderElection is true: the numbers are the cluster's, and one tells them.
func (c *Census) NeedLeaderElection() bool { return true }

// Start counts until ctx ends.
func (c *Census) Start(ctx context.Context) error {
	c.volumes, c.waiting = map[volumeKind]volumeSum{}, map[types.UID]time.Time{}
	informer, err := c.Cache.GetInformer(ctx, &corev1.PersistentVolume{})
	if err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { c.count(o, 1) },
		UpdateFunc: func(before, after any) { c.count(before, -1); c.count(after, 1) },
		DeleteFunc: func(o any) { c.count(o, -1) },
	})
	if err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	c.Metrics.census.follow(c)
	<-ctx.Done()
	return nil
}

// count adds a volume, or takes it away.
func (c *Census) count(o any, times int) {
	if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	volume, ok := o.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	driver := volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]
	if !c.Drivers.Serves(driver) {
		return
	}
	kind := volumeKind{driver, volume.Spec.StorageClassName, string(volume.Status.Phase)}
	size := volume.Spec.Capacity[corev1.ResourceStorage]
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.volumes[kind]
	sum.volumes += times
	sum.bytes += int64(times) * size.Value()
	if sum.volumes == 0 {
		delete(c.volumes, kind)
		return
	}
	c.volumes[kind] = sum
}

// waitingSum is how many claims wait, and how long the first has waited.
type waitingSum struct {
	claims int
	oldest time.Duration
}

// claimsWaiting returns the claims that should have a volume by now, by class. A
// claim whose class waits for its first consumer begins to wait when it was first
// seen with a node: it may have been there for weeks without a pod.
func (c *Census) claimsWaiting(ctx context.Context) (map[*storagev1.StorageClass]waitingSum, error) {
	var classes storagev1.StorageClassList
	if err := c.Client.List(ctx, &classes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list classes: %w", err)
	}
	now := c.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	sums, waiting := map[*storagev1.StorageClass]waitingSum{}, map[types.UID]time.Time{}
	for i := range classes.Items {
		class := &classes.Items[i]
		if !c.Drivers.Serves(class.Provisioner) {
			continue
		}
		var claims corev1.PersistentVolumeClaimList
		if err := c.Client.List(ctx, &claims, client.MatchingFields{indexUnboundClass: class.Name}, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list unbound claims: %w", err)
		}
		sum := waitingSum{}
		for j := range claims.Items {
			claim := &claims.Items[j]
			since := claim.CreationTimestamp.Time
			if waitsForConsumer(class) {
				if selectedNode(claim) == "" {
					continue
				}
				since = now
				if before, ok := c.waiting[claim.UID]; ok {
					since = before
				}
			}
			waiting[claim.UID] = since
			sum.claims++
			sum.oldest = max(sum.oldest, now.Sub(since))
		}
		sums[class] = sum
	}
	c.waiting = waiting
	return sums, nil
}
