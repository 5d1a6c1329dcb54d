package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

func TestClaimIsProvisionedAndBound(t *testing.T) {
	for name, tt := range map[string]struct {
		binding func(*berthOptions)
		mode    func(*storagev1.StorageClass)
	}{
		"assisted, Immediate":                        {func(*berthOptions) {}, func(*storagev1.StorageClass) {}},
		"assisted, WaitForFirstConsumer":             {func(*berthOptions) {}, waitForConsumer},
		"bound by the cluster, Immediate":            {func(o *berthOptions) { o.noBinder = true }, func(*storagev1.StorageClass) {}},
		"bound by the cluster, WaitForFirstConsumer": {func(o *berthOptions) { o.noBinder = true }, waitForConsumer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, driver := newScope(t), newMemoryDriver()
			class := s.class(tt.mode, func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime"} })
			s.run(driver, tt.binding)
			claim := s.claim("data", annotate(selectedNodeKey, "node-1"))
			volume := s.expectBound(claim)

			want := &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{
					Name:        "pvc-" + string(claim.UID),
					Annotations: map[string]string{provisionedByKey: s.driverName()},
					Finalizers:  volume.Finalizers, // compared below
				},
				Spec: corev1.PersistentVolumeSpec{
					Capacity:                      sized("1Gi"),
					AccessModes:                   claim.Spec.AccessModes,
					VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
					PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
					StorageClassName:              class.Name,
					MountOptions:                  []string{"noatime"},
					ClaimRef: &corev1.ObjectReference{
						APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
						ResourceVersion: volume.Spec.ClaimRef.ResourceVersion,
					},
					PersistentVolumeSource: corev1.PersistentVolumeSource{
						HostPath: &corev1.HostPathVolumeSource{Path: "/nowhere/pvc-" + string(claim.UID), Type: ptr.To(corev1.HostPathUnset)},
					},
				},
			}
			got := &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: volume.Name, Annotations: volume.Annotations, Finalizers: volume.Finalizers},
				Spec:       volume.Spec,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("volume (-want +got):\n%s", diff)
			}
			s.Expect(volume.Finalizers).To(gomega.ContainElement(deletionFinalizer))
			s.Expect(claim.Annotations).To(gomega.HaveKeyWithValue("pv.kubernetes.io/bind-completed", "yes"))
			s.Expect(claim.Annotations).To(gomega.HaveKeyWithValue("pv.kubernetes.io/bound-by-controller", "yes"))
			s.Expect(claim.Status.Capacity).To(gomega.HaveKey(corev1.ResourceStorage))
			s.Expect(claim.Status.AccessModes).To(gomega.Equal(claim.Spec.AccessModes))
			s.expectEvent(claim, "Normal ProvisioningSucceeded", "Successfully provisioned volume "+volume.Name)
			s.Expect(driver.Provisions()).To(gomega.HaveLen(1))
			s.Expect(driver.Provisions()[0].options.SelectedNodeName).To(gomega.Equal("node-1"))
			s.Expect(s.volumes()).To(gomega.HaveLen(1))
		})
	}
}

// TestDefaultClassIsAssignedWhenOneAppears is not parallel: a default class is
// everybody's.
func TestDefaultClassIsAssignedWhenOneAppears(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.run(driver)
	claim := s.claim("data", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	s.Consistently(driver.Provisions, quiet).Should(gomega.BeEmpty())
	s.class(func(c *storagev1.StorageClass) { c.Annotations[defaultClassKey] = "true" })
	volume := s.expectBound(claim)
	s.Expect(*claim.Spec.StorageClassName).To(gomega.Equal(s.name))
	s.Expect(volume.Spec.StorageClassName).To(gomega.Equal(s.name))
}

// TestForeignDefaultClassIsNotAssigned is not parallel: a default class is
// everybody's.
func TestForeignDefaultClassIsNotAssigned(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	withoutControllerManager(t)
	s.run(driver)
	claim := s.claim("data", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	s.class(func(c *storagev1.StorageClass) {
		c.Annotations[defaultClassKey] = "true"
		c.Provisioner = "theirs.example.com"
	})
	s.Consistently(func() *string { s.get(claim); return claim.Spec.StorageClassName }, quiet).Should(gomega.BeNil())
	s.Expect(driver.Provisions()).To(gomega.BeEmpty())
}

func TestClassCreatedAfterItsClaim(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.run(driver)
	claim := s.claim("data")
	s.Consistently(driver.Provisions, quiet).Should(gomega.BeEmpty())
	s.class()
	s.expectBound(claim)
}

func TestForeignClassIsLeftAlone(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(func(c *storagev1.StorageClass) { c.Provisioner = "theirs.example.com" })
	s.run(driver)
	claim := s.claim("data")
	s.Consistently(driver.Provisions, quiet).Should(gomega.BeEmpty())
	s.Expect(s.reasons(claim)).To(gomega.BeEmpty())
}

func TestWaitForFirstConsumerWaitsForTheSelectedNode(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(waitForConsumer)
	s.run(driver)
	claim := s.claim("data")
	s.Consistently(driver.Provisions, quiet).Should(gomega.BeEmpty())
	patch(s, claim, annotate(selectedNodeKey, "node-7"))
	s.expectBound(claim)
	s.Expect(driver.Provisions()).To(gomega.HaveLen(1))
	s.Expect(driver.Provisions()[0].options.SelectedNodeName).To(gomega.Equal("node-7"))
}

func TestRescheduleGivesTheClaimBackToTheScheduler(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(waitForConsumer)
	s.run(driver)
	driver.FailProvision(libcontroller.ProvisioningReschedule, errors.New("node full has no room"))
	claim := s.claim("data", annotate(selectedNodeKey, "full"), annotate("volume.alpha.kubernetes.io/selected-node", "full"))
	s.Eventually(func() map[string]string { s.get(claim); return claim.Annotations }).ShouldNot(gomega.Or(
		gomega.HaveKey(selectedNodeKey), gomega.HaveKey("volume.alpha.kubernetes.io/selected-node")))
	s.expectEvent(claim, "Warning ProvisioningFailed", "node full has no room")
	calls := len(driver.Provisions())
	s.Consistently(func() int { return len(driver.Provisions()) }, quiet).Should(gomega.Equal(calls))

	driver.OnProvision(nil)
	patch(s, claim, annotate(selectedNodeKey, "roomy"))
	s.expectBound(claim)
	all := driver.Provisions()
	s.Expect(all[len(all)-1].options.SelectedNodeName).To(gomega.Equal("roomy"))
}

func TestImmediateClaimThatCannotBeRescheduledIsRetried(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	driver.FailProvision(libcontroller.ProvisioningReschedule, errors.New("no room"))
	claim := s.claim("data")
	s.expectEvent(claim, "Warning ProvisioningFailed", "no room")
	driver.OnProvision(nil)
	s.expectBound(claim)
}

func TestInfeasibleClaimIsToldOnceAndLeftUntilSomethingChanges(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	class := s.class()
	s.run(driver)
	driver.FailProvision(libcontroller.ProvisioningFinished, provisioner.Infeasible("annotation color", "blue", "use red"))
	claim := s.claim("data")
	calls := func() int { return len(driver.Provisions()) }
	failures := func() int { return s.reasons(claim)["Warning ProvisioningFailed"] }

	s.Eventually(failures).Should(gomega.Equal(1))
	s.expectEvent(claim, "Warning ProvisioningFailed", `failed to provision volume with StorageClass "`+s.name+`": annotation color: "blue": use red`)
	s.Consistently(calls, quiet).Should(gomega.Equal(1))

	// A change of the claim is tried at once, and told about when it did not help.
	patch(s, claim, annotate("color", "green"))
	s.Eventually(calls).Should(gomega.Equal(2))
	s.Eventually(failures).Should(gomega.Equal(2))
	s.Consistently(calls, quiet).Should(gomega.Equal(2))

	// Another mistake is another event, not a repetition of the first.
	driver.FailProvision(libcontroller.ProvisioningFinished, provisioner.Infeasible("annotation color", "green", "use yellow"))
	patch(s, claim, annotate("note", "look again"))
	s.expectEvent(claim, "Warning ProvisioningFailed", "use yellow")
	s.Eventually(calls).Should(gomega.Equal(3))

	// So is a change of the class.
	driver.OnProvision(nil)
	patch(s, class, func(c *storagev1.StorageClass) { metav1.SetMetaDataAnnotation(&c.ObjectMeta, "note", "fixed") })
	s.Eventually(calls).Should(gomega.Equal(4))
	s.expectBound(claim)
}

func TestInfeasibleClaimIsRetriedSlowlyAfterARestart(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	driver.FailProvision(libcontroller.ProvisioningFinished, provisioner.Infeasible("f", "v", "p"))
	s.claim("data")
	for run := 1; run <= 2; run++ {
		b := s.run(driver)
		s.Eventually(func() int { return len(driver.Provisions()) }).Should(gomega.Equal(run))
		s.Consistently(func() int { return len(driver.Provisions()) }, quiet).Should(gomega.Equal(run))
		b.stop()
	}
}

func TestTransientErrorsBackOffAndNeverGiveUp(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	const failures = 3
	attempt := 0
	driver.OnProvision(func(context.Context, libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error) {
		if attempt++; attempt <= failures {
			return libcontroller.ProvisioningNoChange, errors.New("backend is away")
		}
		return libcontroller.ProvisioningFinished, nil
	})
	claim := s.claim("data", s.triggered)
	s.expectBound(claim)
	calls := driver.Provisions()
	s.Expect(calls).To(gomega.HaveLen(failures + 1))
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if pause := calls[i+1].at.Sub(calls[i].at); pause < want || pause > want+20*time.Second {
			t.Errorf("pause %d was %s, want %s", i+1, pause, want)
		}
	}
	s.Eventually(func() int { return s.reasons(claim)["Warning ProvisioningFailed"] }).Should(gomega.BeNumerically(">=", 1))
}

func TestBackgroundWorkIsAskedForAgain(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	driver.FailProvision(libcontroller.ProvisioningInBackground, errors.New("still copying"))
	claim := s.claim("data")
	s.Eventually(driver.Provisions).Should(gomega.HaveLen(2))
	driver.OnProvision(nil)
	s.expectBound(claim)
}

func TestIgnoredClaimIsLeftInSilence(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	driver.FailProvision(libcontroller.ProvisioningFinished, &libcontroller.IgnoredError{Reason: "another's"})
	claim := s.claim("data", s.triggered)
	calls := func() int { return len(driver.Provisions()) }
	s.Eventually(calls).Should(gomega.Equal(1))
	s.Consistently(calls, quiet).Should(gomega.Equal(1))
	s.Expect(s.reasons(claim)).To(gomega.BeEmpty())
}

func TestSlowProvisioningIsTold(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	entered, release := driver.HoldProvision()
	claim := s.claim("data")
	<-entered
	s.expectEvent(claim, "Normal Provisioning", "External provisioner is provisioning volume for claim \""+s.name+"/data\"")
	release()
	s.expectBound(claim)
}

func TestFastProvisioningIsNotToldTwice(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	s.expectEvent(claim, "Normal ProvisioningSucceeded", "")
	s.Consistently(func() map[string]int { return s.reasons(claim) }, quiet).Should(gomega.Equal(map[string]int{"Normal ProvisioningSucceeded": 1}))
}

func TestBlockClaimIsInfeasibleForADriverWithoutBlock(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) })
	s.expectEvent(claim, "Warning ProvisioningFailed", "spec.volumeMode")
	s.Consistently(func() int { return s.reasons(claim)["Warning ProvisioningFailed"] }, quiet).Should(gomega.Equal(1))
	s.Expect(driver.Provisions()).To(gomega.BeEmpty())
}

func TestVolumeThatDoesNotSatisfyTheClaimIsNotWritten(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	driver.OnFinish(func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("1Mi") })
	claim := s.claim("data")
	s.expectEvent(claim, "Warning ProvisioningFailed", "the driver made a volume of 1Mi, smaller than the 1Gi requested")
	s.Expect(s.volumes()).To(gomega.BeEmpty())
	driver.OnFinish(nil)
	s.expectBound(claim)
}

func TestStaticVolumeIsUsedAndNoneMade(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	static := s.staticVolume(s.name + "-static")
	s.Eventually(func() corev1.PersistentVolumePhase { s.get(static); return static.Status.Phase }).Should(gomega.Equal(corev1.VolumeAvailable))
	s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	s.Expect(volume.Name).To(gomega.Equal(static.Name))
	s.Expect(driver.Provisions()).To(gomega.BeEmpty())
}

func TestClaimIsProvisionedWhenTheStaticVolumeGoesElsewhere(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	static := s.staticVolume(s.name + "-static")
	s.Eventually(func() corev1.PersistentVolumePhase { s.get(static); return static.Status.Phase }).Should(gomega.Equal(corev1.VolumeAvailable))
	s.run(driver)
	first, second := s.claim("first", s.triggered), s.claim("second", s.triggered)
	s.expectBound(first)
	s.expectBound(second)
	s.Expect([]string{first.Spec.VolumeName, second.Spec.VolumeName}).To(gomega.ContainElement(static.Name))
	s.Expect(driver.Stored()).To(gomega.HaveLen(1))
}

func TestStaticVolumeThatWinsTheRaceHasOursUndone(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	entered, release := driver.HoldProvision()
	claim := s.claim("data")
	ours := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: <-entered}}
	static := s.staticVolume(s.name + "-static")
	patch(s, claim, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = static.Name })
	s.Expect(s.expectBound(claim).Name).To(gomega.Equal(static.Name))
	release()
	s.expectEvent(claim, "Normal ProvisioningSucceeded", ours.Name)
	s.expectGone(ours)
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
	s.expectBound(claim)
}

func TestClaimDeletedWhileTheDriverWorksLeavesNothing(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	entered, release := driver.HoldProvision()
	claim := s.claim("data")
	<-entered
	s.delete(claim)
	s.expectGone(claim)
	release()
	s.expectEvent(claim, "Normal ProvisioningSucceeded", "")
	s.expectNothingLeft(driver)
}

func TestNobodyIsToldWhatMayBeNothing(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	attempt := 0
	driver.OnProvision(func(context.Context, libcontroller.ProvisionOptions) (libcontroller.ProvisioningState, error) {
		if attempt++; attempt <= 2 {
			return libcontroller.ProvisioningNoChange, fmt.Errorf("create: %w",
				&provisioner.UnavailableError{RetryAfter: 10 * time.Millisecond, Err: errors.New("not asked yet"), Premature: true})
		}
		return libcontroller.ProvisioningFinished, nil
	})
	claim := s.claim("data")
	s.expectBound(claim)
	s.expectEvent(claim, "Normal ProvisioningSucceeded", "Successfully provisioned volume pvc-"+string(claim.UID))
	s.Expect(s.reasons(claim)).NotTo(gomega.HaveKey("Warning ProvisioningFailed"))
	s.Expect(driver.Provisions()).To(gomega.HaveLen(3))
}

func TestVolumeNameTakenByAStranger(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	entered, release := driver.HoldProvision()
	claim := s.claim("data")
	name := <-entered
	// Of another class: else kube-controller-manager may bind the claim to it.
	stranger := s.staticVolume(name, func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = "another" })
	before := stranger.UID
	release()
	s.expectEvent(claim, "Warning ProvisioningFailed", `a PersistentVolume "`+name+`" exists and belongs to another claim; delete or rename it`)
	s.Expect(s.get(stranger)).To(gomega.BeTrue())
	s.Expect(stranger.UID).To(gomega.Equal(before))
	s.Expect(stranger.Annotations).NotTo(gomega.HaveKey(provisionedByKey))
}

func TestLibraryProvisionerPlugsInUnchanged(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), &libraryProvisioner{volumes: map[string]struct{}{}}
	s.class()
	b := s.run(driver)

	claim := s.claim("data")
	volume := s.expectBound(claim)
	s.Expect(driver.has(volume.Name)).To(gomega.BeTrue())

	block := s.claim("block", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) })
	s.Expect(*s.expectBound(block).Spec.VolumeMode).To(gomega.Equal(corev1.PersistentVolumeBlock))

	unwanted := s.claim("unwanted", func(c *corev1.PersistentVolumeClaim) { c.Labels[libraryNoProvision] = "" })
	s.Consistently(func() corev1.PersistentVolumeClaimPhase { s.get(unwanted); return unwanted.Status.Phase }, quiet).Should(gomega.Equal(corev1.ClaimPending))
	s.Expect(s.reasons(unwanted)).To(gomega.BeEmpty(), "ShouldProvision said no")

	s.delete(claim)
	s.expectGone(volume)
	s.Expect(driver.has(volume.Name)).To(gomega.BeFalse())

	guarded := s.expectBound(block)
	patch(s, guarded, func(v *corev1.PersistentVolume) { v.Labels = map[string]string{libraryNoDelete: ""} })
	s.delete(block)
	s.expectGone(block)
	s.Consistently(func() bool { return s.get(guarded) && driver.has(guarded.Name) }, quiet).Should(gomega.BeTrue(), "ShouldDelete said no")
	patch(s, guarded, func(v *corev1.PersistentVolume) { v.Labels = nil })
	s.expectGone(guarded)
	b.stop()
}
