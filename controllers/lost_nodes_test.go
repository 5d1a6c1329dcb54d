package controllers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const lostSinceKey = "berth.storage/node-lost-since"

func lostAfter(grace time.Duration) func(*berthOptions) {
	return func(o *berthOptions) { o.lostGrace = grace }
}

// lostSince returns a function that reads since when volume's node is marked as
// gone.
func lostSince(s *scope, volume *corev1.PersistentVolume) func() string {
	return func() string {
		s.get(volume)
		return volume.Annotations[lostSinceKey]
	}
}

// boundOn makes a claim with a volume on node.
func (s *scope) boundOn(node, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	s.t.Helper()
	claim := s.claim(name, annotate(selectedNodeKey, node))
	return claim, s.expectBound(claim)
}

func TestVolumesOfADeletedNodeAreDroppedOrReported(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("lost")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer)
	const grace = 20 * time.Second // kube-controller-manager may take its time to release volumes
	b := s.run(driver, lostAfter(grace))
	releasedClaim, released := s.boundOn(node, "released")
	boundClaim, bound := s.boundOn(node, "bound")
	retainedClaim, retained := s.boundOn(node, "retained")
	patch(s, retained, setPolicy(corev1.PersistentVolumeReclaimRetain))

	start := time.Now()
	s.delete(namedNode(node))
	s.Eventually(lostSince(s, released)).ShouldNot(gomega.BeEmpty())
	s.delete(releasedClaim)
	s.delete(retainedClaim)
	s.Eventually(volumePhase(s, retained)).Should(gomega.Equal(corev1.VolumeReleased))
	s.Eventually(volumePhase(s, released)).Should(gomega.Equal(corev1.VolumeReleased))
	s.Consistently(volumePhase(s, released), grace/10).Should(gomega.Equal(corev1.VolumeReleased))
	s.Expect(b.metric("berth_lost_nodes")).To(gomega.Equal(1.0))
	s.expectGone(released)
	if took := time.Since(start); took < grace-time.Second { // marks have whole seconds
		t.Errorf("dropped after %s, within the grace of %s", took, grace)
	}
	s.expectEvent(released, "Warning NodeLost", "its storage was not deleted")
	s.expectEvent(boundClaim, "Warning NodeLost", bound.Name)
	s.Consistently(func() []string { return []string{string(volumePhase(s, bound)()), string(volumePhase(s, retained)())} }, quiet).
		Should(gomega.Equal([]string{"Bound", "Released"}))
	s.Expect(driver.Deletes()).To(gomega.BeEmpty(), "the driver is not asked for what is on a node that is gone")
	s.Expect(driver.Stored()).To(gomega.HaveLen(3))
	s.Expect(b.metric("berth_lost_node_volumes_dropped_total")).To(gomega.Equal(1.0))
	s.Expect(b.metric("berth_lost_node_volumes")).To(gomega.Equal(2.0))

	// A claim that is deleted after the grace does not wait again.
	s.delete(boundClaim)
	s.expectGone(bound)
	s.delete(retained)
	s.expectGone(retained)
	s.Eventually(func() float64 { return b.metric("berth_lost_nodes") }).Should(gomega.BeZero())
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
}

func TestNodeThatComesBackKeepsItsVolumes(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("back")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer)
	const grace = 12 * time.Second // kube-controller-manager may take its time to release volumes
	b := s.run(driver, lostAfter(grace))
	claim, released := s.boundOn(node, "released")
	_, bound := s.boundOn(node, "bound")
	s.delete(namedNode(node))
	s.Eventually(lostSince(s, released)).ShouldNot(gomega.BeEmpty())
	s.delete(claim)
	s.Eventually(volumePhase(s, released)).Should(gomega.Equal(corev1.VolumeReleased))
	s.Consistently(driver.Deletes, grace/8).Should(gomega.BeEmpty())

	s.node("back")
	s.Eventually(lostSince(s, bound)).Should(gomega.BeEmpty())
	s.expectGone(released) // reclaimed, as on any node
	s.Expect(driver.Deletes()).To(gomega.Equal([]string{released.Name}))
	s.Consistently(volumePhase(s, bound), grace).Should(gomega.Equal(corev1.VolumeBound))
	s.Expect(s.reasons(bound)).To(gomega.BeEmpty())
	s.Expect(b.metric("berth_lost_nodes")).To(gomega.BeZero())
	s.Expect(b.metric("berth_lost_node_volumes_dropped_total")).To(gomega.BeZero())
}

func TestGraceOfADeletedNodeOutlivesBerth(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("lost")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer)
	b := s.run(driver, lostAfter(time.Hour))
	claim, volume := s.boundOn(node, "data")
	s.delete(namedNode(node))
	s.Eventually(lostSince(s, volume)).ShouldNot(gomega.BeEmpty())
	s.delete(claim)
	s.Eventually(volumePhase(s, volume)).Should(gomega.Equal(corev1.VolumeReleased))
	b.stop()
	marked := lostSince(s, volume)()

	b = s.run(driver, lostAfter(time.Hour))
	s.Consistently(lostSince(s, volume), quiet).Should(gomega.Equal(marked))
	b.stop()
	// An hour later.
	patch(s, volume, func(v *corev1.PersistentVolume) {
		v.Annotations[lostSinceKey] = metav1.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	})
	s.run(driver, lostAfter(time.Hour))
	s.expectGone(volume)
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
}

// TestNodeThatIsDownHoldsUpOnlyItsOwn: its volumes wait, however many they are,
// those of other nodes do not, and when it is back all are reclaimed.
func TestNodeThatIsDownHoldsUpOnlyItsOwn(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	down, up := s.node("down"), s.node("up")
	driver := newNodeDriver(map[string]int64{down: 1000 * gib, up: 10 * gib})
	s.class(waitForConsumer)
	s.run(driver, lostAfter(time.Second))
	const lost = 60
	for i := range lost {
		s.boundOn(down, fmt.Sprintf("down-%d", i))
	}
	claim, volume := s.boundOn(up, "up")

	const stall = 2 * time.Second
	driver.SetDown(down, true, stall)
	for i := range lost {
		s.delete(newClaimNamed(s.name, fmt.Sprintf("down-%d", i)))
	}
	s.Eventually(driver.waits(down)).Should(gomega.BeNumerically(">", 0))
	s.delete(claim)
	s.expectGone(claim) // when kube-controller-manager has worked off the others
	start := time.Now()
	s.Eventually(driver.Stored).ShouldNot(gomega.ContainElement(volume.Name))
	if took := time.Since(start); took > stall {
		t.Errorf("a volume of another node took %s", took)
	}
	s.Eventually(s.volumes).Should(gomega.HaveLen(lost))
	// From the second attempt on it is one volume at a time.
	before := driver.waits(down)()
	s.Consistently(s.volumes, 4*stall).Should(gomega.HaveLen(lost))
	if tries := driver.waits(down)() - before; tries > 12 {
		t.Errorf("%d attempts in %s for %d volumes of a node that is down", tries, 4*stall, lost)
	}
	driver.SetDown(down, false, 0)
	start = time.Now()
	s.Eventually(s.volumes).Should(gomega.BeEmpty())
	t.Logf("%d volumes were reclaimed within %s of the node's return", lost, time.Since(start))
}
