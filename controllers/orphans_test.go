package controllers_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner"
)

func sweep(grace time.Duration) func(*berthOptions) {
	const every = 100 * time.Millisecond
	return func(o *berthOptions) { o.sweepEvery, o.sweepGrace = every, grace }
}

// orphan is a record that neither a volume nor a claim knows.
func (s *scope) orphan(volume string, age time.Duration) provisioner.Record {
	return provisioner.Record{
		Volume:   volume,
		Claim:    types.NamespacedName{Namespace: s.name, Name: "gone"},
		ClaimUID: "gone-uid",
		Created:  time.Now().Add(-age),
	}
}

func TestEmptyOrphanIsDiscardedAfterTheGrace(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	const grace = 2 * time.Second
	young := s.orphan("young", 0)
	driver.Store(young, false)
	driver.Store(s.orphan("old", time.Hour), false)
	b := s.run(driver, sweep(grace))
	s.Eventually(driver.Stored).Should(gomega.Equal([]string{"young"}))
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
	if age := time.Since(young.Created); age < grace {
		t.Errorf("an orphan was discarded at the age of %s, want %s", age, grace)
	}
	s.Eventually(func() float64 { return b.metric("berth_orphaned_volumes_removed_total") }).Should(gomega.Equal(2.0))
	s.Expect(b.metric("berth_orphaned_volumes")).To(gomega.BeZero())
	s.Expect(driver.Deletes()).To(gomega.BeEmpty(), "an orphan is discarded, never deleted")
}

func TestOrphanThatHoldsDataIsLeftAndCounted(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	driver.Store(s.orphan("precious", time.Hour), true)
	b := s.run(driver, sweep(time.Second))
	s.Eventually(func() float64 { return b.metric("berth_orphaned_volumes") }).Should(gomega.Equal(1.0))
	s.Consistently(driver.Stored, quiet).Should(gomega.Equal([]string{"precious"}))
	s.Expect(b.metric("berth_orphaned_volumes_removed_total")).To(gomega.BeZero())
}

func TestVolumeWithoutStorageIsCounted(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	b := s.run(driver, sweep(time.Second))
	volume := s.expectBound(s.claim("data"))
	s.Consistently(func() float64 { return b.metric("berth_volumes_without_storage") }, quiet).Should(gomega.BeZero())
	s.ok(driver.Discard(s.t.Context(), driver.RecordOf(volume)))
	s.Eventually(func() float64 { return b.metric("berth_volumes_without_storage") }).Should(gomega.Equal(1.0))
	s.Expect(s.volumes()).To(gomega.HaveLen(1))
}

func TestStorageOfPendingClaimsAndVolumesIsNotSwept(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver, sweep(0))
	bound := s.expectBound(s.claim("bound"))

	// A claim that waits for its class, with the storage of an attempt that failed.
	pending := s.claim("pending", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To(s.name + "-later") })
	kept := provisioner.Record{
		Volume:   "pvc-" + string(pending.UID),
		Claim:    types.NamespacedName{Namespace: s.name, Name: "pending"},
		ClaimUID: pending.UID,
		Created:  time.Now().Add(-time.Hour),
	}
	driver.Store(kept, false)
	// The same name, another claim: nobody waits for this one.
	stale := kept
	stale.Volume, stale.ClaimUID = "stale", "another-uid"
	driver.Store(stale, false)

	s.Eventually(driver.Stored).Should(gomega.ConsistOf(bound.Name, kept.Volume))
	s.Consistently(driver.Stored, quiet).Should(gomega.ConsistOf(bound.Name, kept.Volume))
	s.delete(pending)
	s.Eventually(driver.Stored).Should(gomega.Equal([]string{bound.Name}))
}

// TestStorageInAnotherPlaceThanItsVolumeIsLeft: be it what an attempt on another node
// left, a copy, or the live volume itself under another name of its node. It goes when
// no volume has its name any more.
func TestStorageInAnotherPlaceThanItsVolumeIsLeft(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	b := s.run(driver, sweep(0))
	claim := s.claim("data")
	volume := s.expectBound(claim)
	left := driver.RecordOf(volume)
	left.Place, left.Path, left.Created = "elsewhere", "/other", time.Now().Add(-time.Hour)
	left.Claim, left.ClaimUID = client.ObjectKeyFromObject(claim), claim.UID
	driver.Store(left, false)
	s.Eventually(func() float64 { return b.metric("berth_stray_volumes") }).Should(gomega.Equal(1.0))
	s.Consistently(driver.Stored, quiet).Should(gomega.Equal([]string{volume.Name, volume.Name + "@elsewhere"}))
	s.Expect(b.metric("berth_orphaned_volumes")).To(gomega.BeZero())
	s.delete(claim)
	s.expectNothingLeft(driver)
}

// TestStorageThatAnotherVolumeNamesIsLeft: one that somebody made by hand, so that the
// cache holds little of it once it is bound.
func TestStorageThatAnotherVolumeNamesIsLeft(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	other := s.staticVolume(s.name+"-by-hand", func(v *corev1.PersistentVolume) {
		v.Spec.HostPath.Path = "/" + s.name + "/named/inside/"
		v.Spec.StorageClassName = ""
	})
	for _, name := range []string{"named", "named-not"} {
		record := s.orphan(name, time.Hour)
		record.Path = "/" + s.name + "/" + name
		driver.Store(record, false)
	}
	b := s.run(driver, sweep(0))
	s.Eventually(driver.Stored).Should(gomega.Equal([]string{"named"}))
	s.Consistently(driver.Stored, quiet).Should(gomega.Equal([]string{"named"}))
	s.Expect(b.metric("berth_orphaned_volumes")).To(gomega.Equal(1.0))
	s.delete(other)
	s.expectGone(other)
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
}

// TestWhatCantBeReadEndsTheSweepOfNothingElse, neither of orphans nor of volumes
// without storage. Of those that may be there nothing is said.
func TestWhatCantBeReadEndsTheSweepOfNothingElse(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	driver.FailVolumes(&provisioner.UnreadError{Place: "broken/", Err: errors.New("i/o error")})
	driver.Store(s.orphan("old", time.Hour), false)
	b := s.run(driver, sweep(0))
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
	volume := s.expectBound(s.claim("data"))
	s.ok(driver.Discard(s.t.Context(), driver.RecordOf(volume)))
	missing := func() float64 { return b.metric("berth_volumes_without_storage") }
	s.Eventually(missing).Should(gomega.Equal(1.0))
	driver.FailVolumes(&provisioner.UnreadError{Place: "", Err: errors.New("all disks are gone")})
	s.Eventually(missing).Should(gomega.BeZero())
}

// TestVolumesOfNodesThatNobodyCanAskAreNotMissing.
func TestVolumesOfNodesThatNobodyCanAskAreNotMissing(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	node := s.node("a")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	s.class(waitForConsumer)
	b := s.run(driver, sweep(0))
	_, volume := s.boundOn(node, "data")
	s.ok(driver.Discard(s.t.Context(), driver.RecordOf(volume)))
	missing := func() float64 { return b.metric("berth_volumes_without_storage") }
	s.Eventually(missing).Should(gomega.Equal(1.0))
	driver.RemoveNode(node)
	s.Eventually(missing).Should(gomega.BeZero())
}

// TestAVolumeThatWasNeverBoundIsNotTakenBackFromAnother that names its directory.
func TestAVolumeThatWasNeverBoundIsNotTakenBackFromAnother(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	withoutControllerManager(t) // which would call it Released
	s.class()
	path := "/" + s.name + "/dir"
	other := s.staticVolume(s.name+"-by-hand", func(v *corev1.PersistentVolume) { v.Spec.HostPath.Path, v.Spec.StorageClassName = path, "" })
	s.run(driver, sweep(0))
	name := s.name + "-restored"
	driver.Store(provisioner.Record{Volume: name, Path: path, Created: time.Now()}, false)
	restored := s.staticVolume(name, func(v *corev1.PersistentVolume) {
		v.Annotations = map[string]string{provisionedByKey: s.driverName()}
		v.Spec.HostPath.Path, v.Spec.StorageClassName = path, ""
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: s.name, Name: "gone", UID: "gone-uid"}
	})
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), restored) })
	s.expectEvent(restored, "Warning VolumeFailedDelete", other.Name)
	s.Expect(driver.Stored()).To(gomega.Equal([]string{name}))
}
