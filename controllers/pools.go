package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-storage/berth/provisioner"
)

// DefaultPoolInterval is the time between two looks at which nodes have which pools.
const DefaultPoolInterval = time.Minute

// PoolWatcher tells of pools that several nodes have, and of volumes that name a
// node whose pool another one has by now: the node's name has changed, or the disk
// was moved.
type PoolWatcher struct {
	// Client reads from the cache.
	Client client.Client
	// Drivers that are a provisioner.PoolKeeper are watched.
	Drivers *provisioner.Registry
	// Events is where events about nodes and claims go.
	Events events.EventRecorder
	// Metrics counts pools and volumes.
	Metrics *Metrics
	// Clock is the time of looks and reports.
	Clock clock.WithTicker
	// Interval is the time between looks; the first comes at once.
	Interval time.Duration

	// reported holds when whom was told what last.
	reported map[string]time.Time
}

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumes;persistentvolumeclaims,verbs=get;list;watch

// NeedLeaderElection is true: one tells of it.
func (w *PoolWatcher) NeedLeaderElection() bool { return true }

// Start looks until ctx ends.
func (w *PoolWatcher) Start(ctx context.Context) error {
	w.reported = map[string]time.Time{}
	ticker := w.Clock.NewTicker(w.Interval)
	defer ticker.Stop()
	for {
		for _, name := range w.Drivers.Names() {
			if err := w.look(ctx, name); err != nil && ctx.Err() == nil {
				log.FromContext(ctx).V(1).Info("Some nodes did not say which pools they have", "driver", name, "reason", err.Error())
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// look asks the driver called name, and tells what it says.
func (w *PoolWatcher) look(ctx context.Context, name string) error {
	keeper, ok := poolKeeper(w.Drivers, name)
	if !ok {
		return nil
	}
	unmet := keeper.MeetNodes(ctx)
	shared := keeper.SharedPools(ctx)
	w.Metrics.sharedPools.WithLabelValues(name).Set(float64(len(shared)))
	for _, pool := range shared {
		w.tellShared(ctx, pool)
	}
	return errors.Join(unmet, w.tellMoved(ctx, name, keeper))
}

// tellShared tells each node that has a pool of who else has it.
func (w *PoolWatcher) tellShared(ctx context.Context, pool provisioner.SharedPool) {
	var all []string
	for _, place := range pool.Places {
		all = append(all, place.String())
	}
	if w.due("shared/" + pool.ID) {
		log.FromContext(ctx).Info("A pool's id is in use more than once; see docs/operations.md", "id", pool.ID, "places", strings.Join(all, ", "))
	}
	for _, place := range pool.Places {
		w.tellNode(ctx, place.Node, "shared/"+pool.ID+"/"+place.String(), reasonPoolShared,
			"The pool in %s has the id %s, as have in all %s: copies, or one directory that they share. Nothing is made, grown, removed or swept in them until each has an id of its own. "+
				"On the node with the copy stop Berth, give \"id\" in .berth/pool.json another value, and start it again: docs/operations.md#copied-pools",
			place.Directory, pool.ID, strings.Join(all, ", "))
	}
}

// move is what volumes have in common that name one node and lie on another.
type move struct{ from, to string }

// tellMoved tells of volumes that name a node whose pool another one has: that node
// once for all of them, and each claim whose pods can't run there.
func (w *PoolWatcher) tellMoved(ctx context.Context, name string, keeper provisioner.PoolKeeper) error {
	var volumes corev1.PersistentVolumeList
	if err := w.Client.List(ctx, &volumes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	moves := map[move]int{}
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		if volume.Annotations[volumehelpers.AnnDynamicallyProvisioned] != name {
			continue
		}
		if from, to, moved := keeper.Moved(volume); moved {
			moves[move{from, to}]++
			w.tellClaim(ctx, volume, from, to)
		}
	}
	count := 0
	for m, volumes := range moves {
		count += volumes
		if w.due("moved/" + m.from + "/" + m.to) {
			log.FromContext(ctx).Info("Volumes name a node whose pool another node has by now: it was renamed, or its disk was moved", "driver", name, "from", m.from, "to", m.to, "volumes", volumes)
		}
		w.tellNode(ctx, m.to, "moved/"+m.from+"/"+m.to, reasonPoolMoved,
			"Volumes that name node %q lie in a pool of this node: it was renamed, or the disk was moved. They are no orphans, and are ended and grown as before. "+
				"Which nodes their pods run on can't be changed in a PersistentVolume: docs/operations.md#renamed-nodes", m.from)
	}
	w.Metrics.movedVolumes.WithLabelValues(name).Set(float64(count))
	return nil
}

// tellClaim tells the claim of a volume that its pods can't run where the data is.
func (w *PoolWatcher) tellClaim(ctx context.Context, volume *corev1.PersistentVolume, from, to string) {
	node := &corev1.Node{}
	if err := w.Client.Get(ctx, client.ObjectKey{Name: to}, node, client.UnsafeDisableDeepCopy); err != nil {
		return // there will be another look
	}
	if volumehelpers.CheckNodeAffinity(volume, node.Labels) == nil {
		return
	}
	claim, err := claimOf(ctx, w.Client, volume)
	if err != nil || claim == nil || !isFor(volume, claim) || !w.due("claim/"+string(volume.UID)) {
		return
	}
	warn(w.Events, claim, reasonPoolMoved, actionReclaim,
		"Volume %s names node %q, and its data is on node %q now: the node was renamed, or the disk was moved. Pods with this claim run there only while that node has the label that the volume asks for (kubectl describe pv %s): docs/operations.md#renamed-nodes",
		volume.Name, from, to, volume.Name)
}

// tellNode warns of something about a node, now and then.
func (w *PoolWatcher) tellNode(ctx context.Context, name, key, reason, format string, args ...any) {
	node := &corev1.Node{}
	if err := w.Client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return // it has no object, and so nobody who reads its events
	}
	if w.due("node/" + key) {
		warn(w.Events, node, reason, actionReclaim, format, args...)
	}
}

// due reports whether it is time to tell something again, and notes that it is told.
func (w *PoolWatcher) due(key string) bool {
	now := w.Clock.Now()
	if at, told := w.reported[key]; told && now.Sub(at) < lostReportInterval {
		return false
	}
	for old, at := range w.reported {
		if now.Sub(at) >= 2*lostReportInterval {
			delete(w.reported, old)
		}
	}
	w.reported[key] = now
	return true
}

// poolKeeper returns the driver of that name, when it knows pools by their ids.
func poolKeeper(drivers *provisioner.Registry, name string) (provisioner.PoolKeeper, bool) {
	driver, ok := drivers.Get(name)
	if !ok {
		return nil, false
	}
	return provisioner.As[provisioner.PoolKeeper](driver)
}

// servingNodeOf is nodeOf, or the node that has the volume's pool by now.
func servingNodeOf(drivers *provisioner.Registry, volume *corev1.PersistentVolume) string {
	if keeper, ok := poolKeeper(drivers, volume.Annotations[volumehelpers.AnnDynamicallyProvisioned]); ok {
		if _, to, moved := keeper.Moved(volume); moved {
			return to
		}
	}
	return nodeOf(drivers, volume)
}
