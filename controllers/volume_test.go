package controllers_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func volumePhase(s *scope, volume *corev1.PersistentVolume) func() corev1.PersistentVolumePhase {
	return func() corev1.PersistentVolumePhase {
		if !s.get(volume) {
			return "gone"
		}
		return volume.Status.Phase
	}
}

func TestDeletePolicyDeletesStorageThenVolume(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	driver.OnDelete(func(ctx context.Context, v *corev1.PersistentVolume) error {
		return s.client.Get(ctx, client.ObjectKeyFromObject(v), &corev1.PersistentVolume{}) // still there
	})
	s.delete(claim)
	s.expectGone(volume)
	s.Expect(driver.Stored()).To(gomega.BeEmpty())
	s.Expect(s.reasons(volume)).To(gomega.BeEmpty())
}

func TestRetainPolicyLeavesAll(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(retain)
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	s.Expect(volume.Finalizers).NotTo(gomega.ContainElement(deletionFinalizer))
	s.delete(claim)
	s.Eventually(volumePhase(s, volume)).Should(gomega.Equal(corev1.VolumeReleased))
	s.Consistently(volumePhase(s, volume), quiet).Should(gomega.Equal(corev1.VolumeReleased))
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
	// An administrator may delete what was retained.
	s.delete(volume)
	s.expectGone(volume)
	s.Expect(driver.Stored()).To(gomega.HaveLen(1))
}

func setPolicy(policy corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = policy }
}

func TestFinalizerFollowsThePolicyOfTheVolume(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	finalizers := func() []string { s.get(volume); return volume.Finalizers }
	for range 2 {
		patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimRetain))
		s.Eventually(finalizers).ShouldNot(gomega.ContainElement(deletionFinalizer))
		patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimDelete))
		s.Eventually(finalizers).Should(gomega.ContainElement(deletionFinalizer))
	}
	s.Expect(finalizers()).To(gomega.ContainElement("kubernetes.io/pv-protection"), "others' finalizers stay")
}

func TestPolicyEditedToRetainSavesTheStorage(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimRetain))
	s.delete(claim)
	s.Eventually(volumePhase(s, volume)).Should(gomega.Equal(corev1.VolumeReleased))
	s.Consistently(volumePhase(s, volume), quiet).Should(gomega.Equal(corev1.VolumeReleased))
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
}

func TestPolicyEditedToDeleteReclaims(t *testing.T) {
	t.Parallel()
	for name, released := range map[string]bool{"before the claim goes": false, "after the claim went": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, driver := newScope(t), newMemoryDriver()
			s.class(retain)
			s.run(driver)
			claim := s.claim("data")
			volume := s.expectBound(claim)
			if released {
				s.delete(claim)
				s.Eventually(volumePhase(s, volume)).Should(gomega.Equal(corev1.VolumeReleased))
			}
			patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimDelete))
			s.delete(claim)
			s.expectGone(volume)
			s.Expect(driver.Stored()).To(gomega.BeEmpty())
		})
	}
}

func TestVolumeDeletedByAnAdministratorWhileBoundWaitsForTheClaim(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	s.delete(volume)
	s.Consistently(func() bool { return s.get(volume) }, quiet).Should(gomega.BeTrue())
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
	s.expectBound(claim)
	s.delete(claim)
	s.expectGone(volume)
	s.Expect(driver.Stored()).To(gomega.BeEmpty())
}

func TestClaimRecreatedUnderTheSameNameGetsAVolumeOfItsOwn(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	old := s.expectBound(claim)
	s.delete(claim)
	again := &corev1.PersistentVolumeClaim{}
	s.Eventually(func() error {
		again = claim.DeepCopy()
		again.ObjectMeta = metav1.ObjectMeta{Namespace: claim.Namespace, Name: claim.Name}
		again.Spec.VolumeName, again.Status = "", corev1.PersistentVolumeClaimStatus{}
		return s.client.Create(t.Context(), again)
	}).Should(gomega.Succeed())
	fresh := s.expectBound(again)
	s.Expect(fresh.Name).To(gomega.Equal("pvc-" + string(again.UID)))
	s.expectGone(old)
	s.Expect(driver.Stored()).To(gomega.Equal([]string{fresh.Name}))
	s.expectBound(again)
}

func TestFailingDeleteIsToldAndKeepsTheVolume(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	driver.OnDelete(func(context.Context, *corev1.PersistentVolume) error { return errors.New("disk is read-only") })
	s.delete(claim)
	s.expectEvent(volume, "Warning VolumeFailedDelete", "disk is read-only")
	s.Eventually(func() int { return len(driver.Deletes()) }).Should(gomega.BeNumerically(">=", 2), "it is tried again")
	s.Expect(s.get(volume)).To(gomega.BeTrue())
	s.Expect(volume.DeletionTimestamp).To(gomega.BeNil())
	s.Expect(volume.Finalizers).To(gomega.ContainElement(deletionFinalizer))
	driver.OnDelete(nil)
	s.expectGone(volume)
}

func TestIgnoredDeleteLeavesTheVolumeInSilence(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	driver.OnDelete(func(context.Context, *corev1.PersistentVolume) error {
		return &libcontroller.IgnoredError{Reason: "another's"}
	})
	s.delete(claim)
	s.Eventually(driver.Deletes).ShouldNot(gomega.BeEmpty())
	s.Consistently(func() bool { return s.get(volume) && volume.DeletionTimestamp == nil }, quiet).Should(gomega.BeTrue())
	s.Expect(s.reasons(volume)).To(gomega.BeEmpty())
	asked := len(driver.Deletes()) // once for each event about the two that are gone
	s.Consistently(func() int { return len(driver.Deletes()) }, quiet).Should(gomega.Equal(asked), "no retries")
}

func TestRecreatedVolumeOfTheSameNameIsNotDeleted(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	var once sync.Once
	recreated := &corev1.PersistentVolume{}
	done := make(chan error, 1)
	driver.OnDelete(func(ctx context.Context, v *corev1.PersistentVolume) error {
		once.Do(func() { done <- s.recreate(ctx, v, recreated) })
		return nil
	})
	s.delete(claim)
	s.ok(<-done)
	s.Consistently(func() bool { return s.get(recreated) && recreated.DeletionTimestamp == nil }, quiet).Should(gomega.BeTrue())
}

// recreate replaces volume by another of the same name, which no claim has, and
// which carries our annotation and finalizer all the same.
func (s *scope) recreate(ctx context.Context, volume, replacement *corev1.PersistentVolume) error {
	if err := s.client.Delete(ctx, volume.DeepCopy()); err != nil {
		return err
	}
	release := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := s.client.Patch(ctx, volume.DeepCopy(), release); client.IgnoreNotFound(err) != nil {
		return err
	}
	replacement.ObjectMeta = metav1.ObjectMeta{Name: volume.Name, Annotations: volume.Annotations, Finalizers: []string{deletionFinalizer}}
	replacement.Spec = *volume.Spec.DeepCopy()
	replacement.Spec.ClaimRef = nil
	return s.client.Create(ctx, replacement)
}

// TestRestoredVolumeKeepsItsData: a PersistentVolume that is created anew from a
// backup is Pending, like one that was never bound, and its claim is gone.
func TestRestoredVolumeKeepsItsData(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class(retain)
	b := s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	withoutControllerManager(t)
	b.stop()
	record := s.orphan(volume.Name, 0)
	driver.Store(record, true)
	s.forceDelete(claim)
	backup := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.Name, Annotations: volume.Annotations}, Spec: volume.Spec}
	s.delete(volume)
	patch(s, volume, func(v *corev1.PersistentVolume) { v.Finalizers = nil })
	s.expectGone(volume)
	s.create(backup)
	s.run(driver)
	s.Consistently(driver.Stored, quiet).Should(gomega.ConsistOf(volume.Name))
	s.Expect(driver.Deletes()).To(gomega.BeEmpty())
	s.Expect(s.volumes()).To(gomega.HaveLen(1))
}

// forceDelete deletes claim without kube-controller-manager, which would take
// its finalizer off.
func (s *scope) forceDelete(claim *corev1.PersistentVolumeClaim) {
	s.t.Helper()
	s.delete(claim)
	patch(s, claim, func(c *corev1.PersistentVolumeClaim) { c.Finalizers = nil })
	s.expectGone(claim)
}

func TestVolumeNeverBoundIsUndoneWhateverThePolicy(t *testing.T) {
	resume := withoutControllerManager(t)
	s, driver := newScope(t), newMemoryDriver()
	s.class(retain)
	s.run(driver)
	for name, lose := range map[string]func(*corev1.PersistentVolumeClaim){
		"deleted": s.forceDelete,
		"elsewhere": func(claim *corev1.PersistentVolumeClaim) {
			patch(s, claim, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "static" })
		},
		"recreated": func(claim *corev1.PersistentVolumeClaim) {
			s.forceDelete(claim)
			s.claim(claim.Name, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "static" })
		},
	} {
		t.Run("the claim is "+name, func(t *testing.T) {
			entered, release := driver.HoldProvision()
			claim := s.claim(name)
			<-entered
			lose(claim)
			release()
			s.expectEvent(claim, "Normal ProvisioningSucceeded", "pvc-"+string(claim.UID))
			s.Eventually(driver.Stored).Should(gomega.BeEmpty())
		})
	}
	resume() // only kube-controller-manager takes its own finalizer off
	s.expectNothingLeft(driver)
}
