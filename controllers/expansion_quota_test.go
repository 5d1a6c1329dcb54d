package controllers_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner"
)

// sizedDriver is a memoryDriver whose volumes have sizes, as those of a disk with
// quotas have: what it has granted once it never takes back, whatever it answers.
type sizedDriver struct {
	*memoryDriver

	mu     sync.Mutex
	answer func(volume *corev1.PersistentVolume, size int64) (grant bool, err error)
	sizes  map[string]int64
}

func newSizedDriver() *sizedDriver {
	return &sizedDriver{memoryDriver: newMemoryDriver(), sizes: map[string]int64{}}
}

// OnAsk has f say, from now on, whether a volume gets the size that it is to have,
// and what the driver answers.
func (d *sizedDriver) OnAsk(f func(volume *corev1.PersistentVolume, size int64) (grant bool, err error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = f
}

// Expand implements provisioner.Expander.
func (d *sizedDriver) Expand(ctx context.Context, volume *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	grown, err := d.memoryDriver.Expand(ctx, volume, size)
	if err != nil {
		return grown, err
	}
	d.mu.Lock()
	answer := d.answer
	d.mu.Unlock()
	grant := true
	if answer != nil {
		grant, err = answer(volume, size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if grant {
		d.sizes[volume.Name] = max(d.sizes[volume.Name], size)
	}
	grown.Size = d.sizes[volume.Name]
	return grown, err
}

// Sizes returns what volumes have been given.
func (d *sizedDriver) Sizes() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.sizes)
}

// quota limits the storage of the scope's claims, and waits until it is counted.
func (s *scope) quota(size string) *corev1.ResourceQuota {
	s.t.Helper()
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "storage"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourceRequestsStorage: resource.MustParse(size)}},
	}
	s.create(quota)
	s.Eventually(func() int { s.get(quota); return len(quota.Status.Used) }).ShouldNot(gomega.BeZero())
	return quota
}

// used is what quota counts.
func (s *scope) used(quota *corev1.ResourceQuota) string {
	s.t.Helper()
	s.get(quota)
	used := quota.Status.Used[corev1.ResourceRequestsStorage]
	return used.String()
}

// recovers reports whether the API server has the feature
// RecoverVolumeExpansionFailure, by what it does.
func (s *scope) recovers() bool {
	s.t.Helper()
	probe := s.claim("probe", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = new(string) })
	patch := client.RawPatch(types.MergePatchType, []byte(`{"status":{"allocatedResources":{"storage":"1Gi"}}}`))
	s.ok(s.client.Status().Patch(s.t.Context(), probe, patch))
	s.delete(probe)
	return len(probe.Status.AllocatedResources) > 0
}

// onlyIfItRecovers skips tests of what only API servers with the feature allow.
func (s *scope) onlyIfItRecovers() {
	s.t.Helper()
	if !s.recovers() {
		s.t.Skip("the API server does not have RecoverVolumeExpansionFailure, and takes no smaller requests")
	}
}

// claimOf returns the claim that volume is bound to, by name only.
func (s *scope) claimOf(volume *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: volume.Spec.ClaimRef.Name}}
}

// counted is what quotas count of a claim as it is now.
func (s *scope) counted(claim *corev1.PersistentVolumeClaim) int64 {
	s.t.Helper()
	s.get(claim)
	return max(claim.Spec.Resources.Requests.Storage().Value(), claim.Status.AllocatedResources.Storage().Value())
}

// TestQuotaCountsWhatVolumesHave has a tenant that asks for less again while the
// driver makes the volume larger.
func TestQuotaCountsWhatVolumesHave(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.class(growing)
	s.run(driver)
	recovers := s.recovers()
	quota := s.quota("36Gi")
	driver.OnAsk(func(volume *corev1.PersistentVolume, _ int64) (bool, error) {
		if err := tryPatch(s, s.claimOf(volume), ask("1100Mi")); (err == nil) != recovers {
			t.Errorf("less is asked for: %v", err)
		}
		return true, nil
	})
	var claims []*corev1.PersistentVolumeClaim
	for i := range 3 {
		claim := s.claim(fmt.Sprintf("data-%d", i))
		s.expectBound(claim)
		claims = append(claims, claim)
	}
	for _, claim := range claims[:2] {
		patch(s, claim, ask("16Gi"))
		s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"16Gi", "16Gi"}))
	}
	s.Eventually(func() string { return s.used(quota) }).Should(gomega.Equal("33Gi"))
	s.Consistently(func() string { return s.used(quota) }, quiet).Should(gomega.Equal("33Gi"))
	err := tryPatch(s, claims[2], ask("16Gi"))
	s.Expect(apierrors.IsForbidden(err)).To(gomega.BeTrue(), "the third that is to have 16Gi of 36Gi: %v", err)
	for _, claim := range claims[:2] {
		if recovers {
			s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{"16Gi", ""}))
			s.Expect(claim.Spec.Resources.Requests.Storage().String()).To(gomega.Equal("1100Mi"))
		}
		err := tryPatch(s, claim, ask("1050Mi"))
		s.Expect(apierrors.IsInvalid(err)).To(gomega.BeTrue(), "less than the claim has: %v", err)
	}
}

// TestTenantInALoopGetsNoMoreThanItsQuota has tenants ask for more and for less and
// write annotations as fast as they can, while two processes think that they
// lead, and a driver that may refuse, or do what it is asked without an answer.
func TestTenantInALoopGetsNoMoreThanItsQuota(t *testing.T) {
	t.Parallel()
	const attack = 10 * time.Second
	s, driver := newScope(t), newSizedDriver()
	s.class(growing)
	s.run(driver)
	s.run(driver)
	s.quota("20Gi")
	driver.OnAsk(func(volume *corev1.PersistentVolume, size int64) (bool, error) {
		if counted := s.counted(s.claimOf(volume)); counted < size {
			t.Errorf("the storage is asked for %d, and quotas count %d", size, counted)
		}
		switch rand.N(8) {
		case 0:
			return true, status.Error(codes.DeadlineExceeded, "no answer")
		case 1:
			return false, status.Error(codes.Unavailable, "away")
		case 2:
			return false, status.Error(codes.ResourceExhausted, "no room")
		case 3:
			return true, fmt.Errorf("the marker can't be written")
		}
		return true, nil
	})
	var claims []*corev1.PersistentVolumeClaim
	volumes := map[string]*corev1.PersistentVolumeClaim{}
	for i := range 3 {
		claim := s.claim(fmt.Sprintf("data-%d", i))
		volumes[s.expectBound(claim).Name] = claim
		claims = append(claims, claim)
	}
	var tenants sync.WaitGroup
	end := time.Now().Add(attack)
	for _, claim := range claims {
		mine := claim.DeepCopy()
		tenants.Go(func() {
			for n := int64(0); time.Now().Before(end); n++ {
				s.get(mine)
				has := mine.Status.Capacity.Storage().Value()
				for _, edit := range []func(*corev1.PersistentVolumeClaim){
					ask(fmt.Sprint(has + 1 + rand.N(2*gib))),
					annotate("n", fmt.Sprint(n)), ask(fmt.Sprint(has + 1)), annotate("n", fmt.Sprint(-n)),
				} {
					_ = tryPatch(s, mine, edit) // the quota, or what the claim has by now, may forbid it
				}
			}
		})
	}
	tenants.Wait()
	driver.OnAsk(nil)
	for volume, claim := range volumes {
		s.Eventually(func(g gomega.Gomega) {
			has := s.sizes(claim)
			g.Expect(has[0]).To(gomega.Equal(has[1]))
			g.Expect(claim.Status.Capacity.Storage().Cmp(*claim.Spec.Resources.Requests.Storage())).To(gomega.BeNumerically(">=", 0))
			g.Expect(claim.Status.AllocatedResourceStatuses).To(gomega.BeEmpty())
		}).Should(gomega.Succeed())
		if has, counted := driver.Sizes()[volume], s.counted(claim); has > counted {
			t.Errorf("%s has %d, and quotas count %d", claim.Name, has, counted)
		}
	}
	var has, counted int64
	for volume, claim := range volumes {
		has, counted = has+driver.Sizes()[volume], counted+s.counted(claim)
	}
	switch {
	case counted > 20*gib:
		// kube-controller-manager may count from what it has cached, after the API server
		// has counted a request that it has not seen.
		t.Logf("Kubernetes let the tenants ask for %d, of 20Gi", counted)
	case has > 20*gib:
		t.Errorf("the volumes have %d in all, of 20Gi", has)
	}
	t.Logf("%d calls of the driver; the volumes have %v", len(driver.Expansions()), driver.Sizes())
}

// TestVolumeLargerThanTheQuotaIsNotReported has a volume that an earlier release
// made larger than its claim asks for, and died.
func TestVolumeLargerThanTheQuotaIsNotReported(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.onlyIfItRecovers()
	s.class(growing)
	b := s.run(driver)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	b.stop()
	quota := s.quota("10Gi")
	patch(s, claim, ask("2Gi"))
	patch(s, volume, func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("16Gi") })

	s.run(driver)
	if s.quotaGuardsStatus(claim) {
		s.expectEvent(claim, "Warning VolumeResizeFailed", "exceeded quota")
		s.Consistently(func() [2]string { return s.sizes(claim) }, quiet).Should(gomega.Equal([2]string{"16Gi", "1Gi"}))
		patch(s, quota, func(q *corev1.ResourceQuota) {
			q.Spec.Hard[corev1.ResourceRequestsStorage] = resource.MustParse("20Gi")
		})
	}
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"16Gi", "16Gi"}))
	s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{"16Gi", ""}))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
	s.Eventually(func() string { return s.used(quota) }).Should(gomega.Equal("16Gi"))
}

// quotaGuardsStatus reports whether quotas keep more from being allocated than they
// have room for; otherwise they count it afterwards.
func (s *scope) quotaGuardsStatus(claim *corev1.PersistentVolumeClaim) bool {
	s.t.Helper()
	s.get(claim)
	patch := client.RawPatch(types.MergePatchType, []byte(`{"status":{"allocatedResources":{"storage":"100Gi"}}}`))
	err := s.client.Status().Patch(s.t.Context(), claim.DeepCopy(), patch, client.DryRunAll)
	if err != nil && !apierrors.IsForbidden(err) {
		s.t.Fatal(err)
	}
	return err != nil
}
