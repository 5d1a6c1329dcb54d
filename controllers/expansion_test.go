package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

func growing(c *storagev1.StorageClass) { c.AllowVolumeExpansion = ptr.To(true) }

func ask(size string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized(size) }
}

// sizes are what a claim's volume and the claim's status say.
func (s *scope) sizes(claim *corev1.PersistentVolumeClaim) [2]string {
	s.t.Helper()
	s.get(claim)
	volume := &corev1.PersistentVolume{}
	volume.Name = claim.Spec.VolumeName
	s.get(volume)
	return [2]string{volume.Spec.Capacity.Storage().String(), claim.Status.Capacity.Storage().String()}
}

func (s *scope) resizeConditions(claim *corev1.PersistentVolumeClaim) []corev1.PersistentVolumeClaimConditionType {
	s.t.Helper()
	s.get(claim)
	var types []corev1.PersistentVolumeClaimConditionType
	for _, c := range claim.Status.Conditions {
		if c.Type != "Unused" { // kube-controller-manager's word for a claim without pods
			types = append(types, c.Type)
		}
	}
	return types
}

func inBytes(sizes ...string) []int64 {
	var n []int64
	for _, size := range sizes {
		n = append(n, ptr.To(resource.MustParse(size)).Value())
	}
	return n
}

func TestVolumeGrowsWithItsClaim(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	b := s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	for _, size := range []string{"2Gi", "5Gi"} {
		patch(s, claim, ask(size))
		s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{size, size}))
	}
	s.Expect(driver.Expansions()).To(gomega.Equal(inBytes("2Gi", "5Gi")))
	volume := &corev1.PersistentVolume{}
	volume.Name = claim.Spec.VolumeName
	s.get(volume)
	s.Expect(volume.Annotations).To(gomega.HaveKeyWithValue("memory/size", fmt.Sprint(inBytes("5Gi")[0])))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
	s.expectEvent(claim, "Normal VolumeResizeSuccessful", "memory is cheap")
	s.Eventually(func() float64 { return b.metric("berth_expansion_duration_seconds") }).Should(gomega.Equal(2.0))
}

func TestClaimThatGrowsTwiceAtOnceEndsWithTheLargest(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	entered, release := make(chan struct{}, 10), make(chan struct{})
	driver.OnExpand(func(ctx context.Context, _ int64) error {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	patch(s, claim, ask("2Gi"))
	<-entered
	patch(s, claim, ask("7Gi"))
	close(release)
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"7Gi", "7Gi"}))
}

func TestExpansionThatIsRefusedLeavesAConditionUntilItIsGivenUp(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	b := s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	driver.OnExpand(func(context.Context, int64) error {
		return provisioner.Infeasible("claim field spec.resources.requests.storage", "9Gi", "the pool has 5Gi in all")
	})
	patch(s, claim, ask("9Gi"))
	s.expectEvent(claim, "Warning VolumeResizeFailed", "the pool has 5Gi in all")
	s.Eventually(func() []corev1.PersistentVolumeClaimConditionType { return s.resizeConditions(claim) }).
		Should(gomega.Equal([]corev1.PersistentVolumeClaimConditionType{corev1.PersistentVolumeClaimControllerResizeError}))
	asked := len(driver.Expansions())
	s.Expect(asked).To(gomega.BeNumerically("<=", 2), "it is asked again only when somebody else wrote to the claim meanwhile")
	s.Consistently(driver.Expansions, quiet).Should(gomega.HaveLen(asked))
	s.Expect(s.sizes(claim)).To(gomega.Equal([2]string{"1Gi", "1Gi"}))
	s.Expect(b.metric("berth_expansions_failed_total")).To(gomega.Equal(float64(asked)))

	driver.OnExpand(nil)
	next := "3Gi" // less than before
	if !s.recovers() {
		next = "10Gi" // the API server takes nothing less
	}
	patch(s, claim, ask(next))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{next, next}))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
}

// TestExpansionWithoutRoomLeavesAConditionUntilThereIsRoom has a driver that says
// something else each time, as one does that names what is free.
func TestExpansionWithoutRoomLeavesAConditionUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	var attempts atomic.Int64
	driver.OnExpand(func(context.Context, int64) error {
		return fmt.Errorf("expand: %w", status.Errorf(codes.ResourceExhausted, "no room for %d volumes", attempts.Add(1)))
	})
	patch(s, claim, ask("2Gi"))
	s.expectEvent(claim, "Warning VolumeResizeFailed", "no room for 1 volumes")
	s.Eventually(func() []corev1.PersistentVolumeClaimConditionType { return s.resizeConditions(claim) }).
		Should(gomega.Equal([]corev1.PersistentVolumeClaimConditionType{corev1.PersistentVolumeClaimControllerResizeError}))
	s.Eventually(attempts.Load).Should(gomega.BeNumerically(">", 1), "it is tried again")
	s.Consistently(attempts.Load, quiet).Should(gomega.BeNumerically("<", 12), "the condition must not end the wait for the next attempt")

	driver.OnExpand(nil)
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
}

func TestExpansionNeedsAClassThatAllowsIt(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	err := tryPatch(s, claim, ask("2Gi"))
	s.Expect(apierrors.IsForbidden(err)).To(gomega.BeTrue(), "the API server says %v", err)
	s.Consistently(driver.Expansions, quiet).Should(gomega.BeEmpty())
	s.Expect(s.sizes(claim)).To(gomega.Equal([2]string{"1Gi", "1Gi"}))
}

func TestVolumesDoNotShrink(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	patch(s, claim, ask("3Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"3Gi", "3Gi"}))
	err := tryPatch(s, claim, ask("2Gi"))
	s.Expect(apierrors.IsInvalid(err)).To(gomega.BeTrue(), "the API server says %v", err)
	s.Consistently(driver.Expansions, quiet).Should(gomega.Equal(inBytes("3Gi")))
	s.Expect(s.sizes(claim)).To(gomega.Equal([2]string{"3Gi", "3Gi"}))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
}

func TestExpansionIsTriedAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	attempts := 0
	driver.OnExpand(func(context.Context, int64) error {
		if attempts++; attempts == 1 {
			return errors.New("the disk is busy")
		}
		if attempts == 2 {
			return &provisioner.UnavailableError{RetryAfter: 10 * time.Millisecond, Err: errors.New("the server is away")}
		}
		return nil
	})
	patch(s, claim, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	s.expectEvent(claim, "Warning VolumeResizeFailed", "the disk is busy")
	s.expectEvent(claim, "Warning VolumeResizeFailed", "the server is away")
}

func TestExpansionThatACrashInterruptedIsFinished(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	b := s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	b.stop()
	patch(s, claim, ask("2Gi"))
	patch(s, volume, func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("2Gi") })
	s.run(driver)
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	s.Expect(driver.Expansions()).To(gomega.BeEmpty())
}

func TestVolumesOfOtherProvisionersAreNotExpanded(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newMemoryDriver()
	s.class(growing)
	s.run(driver)
	static := s.staticVolume(s.name + "-static")
	s.Eventually(func() corev1.PersistentVolumePhase { s.get(static); return static.Status.Phase }).Should(gomega.Equal(corev1.VolumeAvailable))
	claim := s.claim("data")
	s.Eventually(func() string { s.get(claim); return claim.Spec.VolumeName }).Should(gomega.Equal(static.Name))
	s.Eventually(func() corev1.PersistentVolumeClaimPhase { s.get(claim); return claim.Status.Phase }).Should(gomega.Equal(corev1.ClaimBound))
	patch(s, claim, ask("2Gi"))
	s.Consistently(func() [2]string { return s.sizes(claim) }, quiet).Should(gomega.Equal([2]string{"1Gi", "1Gi"}))
	s.Expect(driver.Expansions()).To(gomega.BeEmpty())
}

func TestDriverThatCantExpandIsSaidSo(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	s.class(growing)
	s.run(struct{ libcontroller.Provisioner }{newMemoryDriver()})
	claim := s.claim("data")
	s.expectBound(claim)
	patch(s, claim, ask("2Gi"))
	s.expectEvent(claim, "Warning VolumeResizeFailed", "has no volumes that can grow")
}
