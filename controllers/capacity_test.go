package controllers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/onsi/gomega"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/controllers"
)

// publish has the manager publish capacities, looking every interval at nodes
// that nothing is known to have happened to.
func publish(interval time.Duration) func(*berthOptions) {
	return func(o *berthOptions) {
		o.capacity = &controllers.CapacityPublisher{
			Interval: interval, OutageGrace: controllers.DefaultCapacityOutageGrace, Writes: controllers.DefaultCapacityWrites,
		}
	}
}

// rarely is longer than any test.
const rarely = time.Hour

func unpublish(o *berthOptions) { o.noCapacity = true }

// room returns what is published for each node, in the scope's class.
func (s *scope) room() map[string]int64 {
	s.t.Helper()
	var list storagev1.CSIStorageCapacityList
	s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(s.name)))
	room := map[string]int64{}
	for _, o := range list.Items {
		if o.StorageClassName == s.name {
			room[o.NodeTopology.MatchLabels["kubernetes.io/hostname"]] += o.MaximumVolumeSize.Value()
		}
	}
	return room
}

func (s *scope) csiDriver() *storagev1.CSIDriver {
	return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: s.driverName()}}
}

// expectScheduling waits until kube-scheduler is told to look at capacities.
func (s *scope) expectScheduling() {
	s.t.Helper()
	s.Eventually(func() bool {
		driver := s.csiDriver()
		return s.get(driver) && ptr.Deref(driver.Spec.StorageCapacity, false)
	}).Should(gomega.BeTrue(), "the CSIDriver object says so")
}

func TestPodsArePlacedWhereThereIsRoom(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	full, roomy := s.node("full"), s.node("roomy")
	driver := newNodeDriver(map[string]int64{full: gib / 2, roomy: 20 * gib})
	s.class(waitForConsumer)
	s.run(driver, publish(rarely))
	s.expectScheduling()
	for i := range 10 {
		pod := s.pod(fmt.Sprintf("pod-%d", i), "1Gi")
		s.Eventually(s.nodeOf(pod)).Should(gomega.Equal(roomy))
	}
	s.Expect(driver.Provisions()).To(gomega.HaveLen(10), "no claim was tried on the full node")
}

func TestPodWaitsForRoomAndStartsWhenThereIsSome(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	one, two := s.node("one"), s.node("two")
	driver := newNodeDriver(map[string]int64{one: gib / 2, two: 3 * gib / 2})
	s.class(waitForConsumer)
	s.run(driver, publish(rarely))
	s.expectScheduling()

	first := s.pod("first", "1Gi")
	s.Eventually(s.nodeOf(first)).Should(gomega.Equal(two))
	second := s.pod("second", "1Gi")
	s.Eventually(s.whyUnscheduled(second)).Should(gomega.ContainSubstring("2 node(s) did not have enough free storage"))
	s.Consistently(s.nodeOf(second), quiet).Should(gomega.BeEmpty())

	// The end of the first volume makes room for the second.
	start := time.Now()
	s.delete(first)
	s.delete(newClaimNamed(s.name, "first"))
	s.Eventually(s.nodeOf(second)).Should(gomega.Equal(two))
	t.Logf("placed %s after the deletion", time.Since(start))
}

func TestRoomIsPublishedRightAfterVolumesComeGrowAndGo(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("a")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer, growing)
	s.run(driver, publish(rarely))
	expectRoom := func(want int64) {
		t.Helper()
		s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): want}))
	}
	expectRoom(10 * gib)
	claim := s.claim("data", annotate(selectedNodeKey, node))
	volume := s.expectBound(claim)
	expectRoom(9 * gib)
	driver.SetFree(node, 8*gib) // what the expansion takes
	patch(s, claim, ask("2Gi"))
	expectRoom(8 * gib)
	s.delete(claim)
	s.expectGone(volume)
	expectRoom(9 * gib)
}

func TestRoomThatChangesByItselfIsFoundInTime(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("a")
	driver := newNodeDriver(map[string]int64{node: gib})
	s.class(waitForConsumer)
	b := s.run(driver, publish(time.Second))
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): gib}))
	writes := func() float64 { return b.metric("berth_capacity_writes_total") }
	s.Eventually(writes).Should(gomega.Equal(1.0))
	asked := driver.Asked(node)
	s.Eventually(func() int { return driver.Asked(node) }).Should(gomega.BeNumerically(">", asked+2))
	s.Expect(writes()).To(gomega.Equal(1.0), "what has not changed is not written")
	driver.SetFree(node, 2*gib)
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): 2 * gib}))
	s.Eventually(func() float64 { return b.metric("berth_capacity_available_bytes") }).Should(gomega.Equal(float64(2 * gib)))
}

func TestCapacityGoesWithNodeAndClass(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	one, two := s.node("one"), s.node("two")
	driver := newNodeDriver(map[string]int64{one: gib, two: gib})
	class := s.class(waitForConsumer)
	b := s.run(driver, publish(rarely))
	s.Eventually(s.room).Should(gomega.HaveLen(2))
	s.delete(namedNode(one))
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(two): gib}))
	s.delete(class)
	s.Eventually(s.room).Should(gomega.BeEmpty())
	s.Eventually(func() float64 { return b.metric("berth_capacity_objects_goal") }).Should(gomega.BeZero())
	s.class(waitForConsumer)
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(two): gib}))
	three := s.node("three")
	driver.SetFree(three, gib)
	s.Eventually(s.room).Should(gomega.HaveLen(2))
}

func TestImmediateClassesHaveNoCapacity(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	driver := newNodeDriver(map[string]int64{s.node("a"): gib})
	s.class()
	s.run(driver, publish(rarely))
	s.expectScheduling()
	s.Consistently(s.room, quiet).Should(gomega.BeEmpty())
}

func TestUnreachableNodeKeepsItsRoomForAGrace(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("a")
	driver := newNodeDriver(map[string]int64{node: gib})
	s.class(waitForConsumer)
	const grace = 4 * time.Second
	b := s.run(driver, publish(time.Second), func(o *berthOptions) { o.capacity.OutageGrace = grace })
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): gib}))
	driver.SetDown(node, true, 0)
	s.Eventually(func() float64 { return b.metric("berth_capacity_unreachable_nodes") }).Should(gomega.Equal(1.0))
	s.Consistently(s.room, grace/2).Should(gomega.Equal(map[string]int64{hostnameOf(node): gib}))
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): 0}))
	driver.SetDown(node, false, 0)
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): gib}))
	s.Expect(b.metric("berth_capacity_unreachable_nodes")).To(gomega.BeZero())

	// An agent that is gone counts as one that can't be reached, at first.
	driver.RemoveNode(node)
	s.Consistently(s.room, grace/2).Should(gomega.HaveLen(1))
	s.Eventually(s.room).Should(gomega.BeEmpty())
}

// TestSchedulerLooksOnlyOnceAllNodesWereAsked: before that there would seem to
// be no room anywhere.
func TestSchedulerLooksOnlyOnceAllNodesWereAsked(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	one, two := s.node("one"), s.node("two")
	driver := newNodeDriver(map[string]int64{one: gib, two: gib})
	answer := make(chan struct{})
	driver.OnAsked(func(node string) {
		if node == two {
			<-answer
		}
	})
	s.class(waitForConsumer)
	s.run(driver, publish(rarely))
	s.Eventually(s.room).Should(gomega.HaveLen(1))
	s.Consistently(func() bool {
		d := s.csiDriver()
		return s.get(d) && *d.Spec.StorageCapacity
	}, 2*quiet).Should(gomega.BeFalse())
	close(answer)
	s.expectScheduling()
	s.Expect(s.room()).To(gomega.HaveLen(2))
}

func TestPodOfAnInfeasibleClassIsToldWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	driver := newNodeDriver(map[string]int64{s.node("a"): gib})
	s.class(waitForConsumer, func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"problem": "typo"} })
	s.run(driver, publish(rarely))
	s.expectScheduling()
	s.pod("data", "10Gi")
	claim := newClaimNamed(s.name, "data")
	s.get(claim)
	s.expectEvent(claim, "Warning ProvisioningFailed", `StorageClass parameter problem: "typo": remove it`)
}

func TestTurnedOffCapacityIsRemoved(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	driver := newNodeDriver(map[string]int64{s.node("one"): gib / 2, s.node("two"): gib / 2})
	s.class(waitForConsumer)
	b := s.run(driver, publish(rarely))
	s.expectScheduling()
	s.Eventually(s.room).Should(gomega.HaveLen(2))
	b.stop()

	s.run(driver, unpublish)
	s.expectGone(s.csiDriver())
	s.Eventually(s.room).Should(gomega.BeEmpty())
	// kube-scheduler chooses a node without asking for room, and the claim is tried there.
	s.pod("data", "1Gi")
	claim := newClaimNamed(s.name, "data")
	s.get(claim)
	s.expectEvent(claim, "Warning ProvisioningFailed", "no room on "+s.name)
}

func TestCSIDriverDeletedByMistakeIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	driver := newNodeDriver(map[string]int64{s.node("a"): gib})
	s.class(waitForConsumer)
	s.run(driver, publish(time.Second))
	s.expectScheduling()
	s.Eventually(s.room).Should(gomega.HaveLen(1))
	// kube-controller-manager's garbage collector removes what the object owned.
	s.delete(s.csiDriver())
	s.expectScheduling()
	owner := func() []metav1.OwnerReference {
		var list storagev1.CSIStorageCapacityList
		s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(s.name)))
		if len(list.Items) != 1 {
			return nil
		}
		return list.Items[0].OwnerReferences
	}
	current := s.csiDriver()
	s.get(current)
	s.Eventually(owner).Should(gomega.ConsistOf(gomega.HaveField("UID", current.UID)))
	s.Consistently(owner, quiet).Should(gomega.ConsistOf(gomega.HaveField("UID", current.UID)))
}
