package controllers_test

import (
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

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

// TestStorageInAnotherPlaceThanItsVolumeIsSwept: an attempt on another node was
// given up, and the volume was made elsewhere.
func TestStorageInAnotherPlaceThanItsVolumeIsSwept(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver, sweep(0))
	volume := s.expectBound(s.claim("data"))
	s.Consistently(driver.Stored, quiet).Should(gomega.Equal([]string{volume.Name}))
	left := driver.RecordOf(volume)
	left.Place, left.Created = "elsewhere", time.Now().Add(-time.Hour)
	driver.Store(left, false)
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
	s.Expect(s.volumes()).To(gomega.HaveLen(1))
}
