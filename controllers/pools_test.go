package controllers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-storage/berth/provisioner"
)

// poolDriver is a nodeDriver whose nodes have pools, each with the id that its first
// node's name is.
type poolDriver struct {
	*nodeDriver

	mu     sync.Mutex
	nodes  map[string]string // where each pool is
	shared []provisioner.SharedPool
}

func newPoolDriver(free map[string]int64) *poolDriver {
	return &poolDriver{nodeDriver: newNodeDriver(free), nodes: map[string]string{}}
}

// Move has a pool be on another node from now on.
func (d *poolDriver) Move(pool, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes[pool] = to
}

// Share has a pool be in several places.
func (d *poolDriver) Share(pools ...provisioner.SharedPool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shared = pools
}

// MeetNodes implements provisioner.PoolKeeper.
func (d *poolDriver) MeetNodes(context.Context) error { return nil }

// SharedPools implements provisioner.PoolKeeper.
func (d *poolDriver) SharedPools(context.Context) []provisioner.SharedPool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shared
}

// Moved implements provisioner.PoolKeeper.
func (d *poolDriver) Moved(volume *corev1.PersistentVolume) (from, to string, moved bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	from = d.NodeOf(volume)
	to, moved = d.nodes[from]
	return from, to, moved
}

// Identify implements provisioner.PoolKeeper.
func (d *poolDriver) Identify(_ context.Context, _ *corev1.PersistentVolume, record provisioner.Record) map[string]string {
	return map[string]string{poolKey: record.Pool}
}

// TestVolumesOfARenamedNodeAreNotLost: they are told of, once, and ended, also when
// their Node was deleted long ago.
func TestVolumesOfARenamedNodeAreNotLost(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	old := s.node("old")
	driver := newPoolDriver(map[string]int64{old: 10 * gib})
	s.class(waitForConsumer)
	b := s.run(driver, lostAfter(2*time.Second))
	claim, volume := s.boundOn(old, "data")
	endedClaim, ended := s.boundOn(old, "ended")
	s.delete(namedNode(old))
	s.Eventually(lostSince(s, volume)).ShouldNot(gomega.BeEmpty())
	renamed := s.node("new")
	driver.Move(old, renamed)

	s.Eventually(lostSince(s, volume)).Should(gomega.BeEmpty())
	s.Eventually(func() float64 { return b.metric("berth_moved_volumes") }).Should(gomega.Equal(2.0))
	s.Eventually(func() float64 { return b.metric("berth_lost_nodes") }).Should(gomega.BeZero())
	s.expectEvent(claim, "Warning PoolMoved", renamed)
	node := namedNode(renamed)
	s.Expect(s.get(node)).To(gomega.BeTrue())
	s.expectEvent(node, "Warning PoolMoved", old)
	s.delete(endedClaim)
	s.expectGone(ended)
	s.Expect(driver.Deletes()).To(gomega.Equal([]string{ended.Name}))
	s.Consistently(volumePhase(s, volume), quiet).Should(gomega.Equal(corev1.VolumeBound))
	s.Expect(s.reasons(claim)["Warning PoolMoved"]).To(gomega.Equal(1))
	s.Expect(s.reasons(node)["Warning PoolMoved"]).To(gomega.Equal(1))
}

// TestBothNodesAreToldOfASharedPool, once.
func TestBothNodesAreToldOfASharedPool(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	one, two := s.node("one"), s.node("two")
	driver := newPoolDriver(map[string]int64{one: gib, two: gib})
	driver.Share(provisioner.SharedPool{ID: "X", Places: []provisioner.PoolPlace{{Node: one, Directory: "/a"}, {Node: two, Directory: "/b"}}})
	b := s.run(driver, lostAfter(time.Minute))
	s.Eventually(func() float64 { return b.metric("berth_shared_pools") }).Should(gomega.Equal(1.0))
	for _, name := range []string{one, two} {
		node := namedNode(name)
		s.Expect(s.get(node)).To(gomega.BeTrue())
		s.expectEvent(node, "Warning PoolShared", "/a on node "+one+", /b on node "+two)
		s.Consistently(func() int { return s.reasons(node)["Warning PoolShared"] }, quiet).Should(gomega.Equal(1))
	}
	driver.Share()
	s.Eventually(func() float64 { return b.metric("berth_shared_pools") }).Should(gomega.BeZero())
}

// TestVolumesAreToldTheirPoolOnce: those that don't say it.
func TestVolumesAreToldTheirPoolOnce(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("a")
	driver := newPoolDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer)
	s.run(driver, sweep(time.Hour))
	_, volume := s.boundOn(node, "data")
	record := driver.RecordOf(volume)
	record.Pool = "X"
	driver.Store(record, false)
	s.Eventually(func() string { s.get(volume); return volume.Annotations[poolKey] }).Should(gomega.Equal("X"))
	version := volume.ResourceVersion
	s.Consistently(func() string { s.get(volume); return volume.ResourceVersion }, quiet).Should(gomega.Equal(version))
}
