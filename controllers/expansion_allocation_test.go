package controllers_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-storage/berth/test/controlplane"
)

// allocated is what the claim's status says of its expansion.
func (s *scope) allocated(claim *corev1.PersistentVolumeClaim) [2]string {
	s.t.Helper()
	s.get(claim)
	size, ok := claim.Status.AllocatedResources[corev1.ResourceStorage]
	text := ""
	if ok {
		text = size.String()
	}
	return [2]string{text, string(claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage])}
}

// expansionWrites are what Berth has written into the status of claim, and into its volume,
// in order, without metadata.
func (s *scope) expansionWrites(claim *corev1.PersistentVolumeClaim) []string {
	s.t.Helper()
	var writes []string
	for event, err := range controlplane.ReadAudit(sharedControlPlane(s.t).AuditLogPath()) {
		s.ok(err)
		ref := event.ObjectRef
		if event.User.Username != berthUser || event.RequestObject == nil || ref == nil {
			continue
		}
		var body map[string]map[string]any
		if json.Unmarshal(event.RequestObject.Raw, &body) != nil {
			continue
		}
		if (ref.Namespace == s.name && ref.Name == claim.Name && ref.Subresource == "status") || ref.Name == claim.Spec.VolumeName {
			text, err := json.Marshal(firstOf(body["status"], body["spec"]))
			s.ok(err)
			writes = append(writes, ref.Resource+" "+string(text))
		}
	}
	return writes
}

func firstOf(a, b map[string]any) map[string]any {
	if len(a) > 0 {
		return a
	}
	return b
}

func TestSizeIsAllocatedBeforeTheStorageIsAsked(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	recovers := s.recovers()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	before := len(s.expansionWrites(claim))
	var during atomic.Value
	driver.OnAsk(func(*corev1.PersistentVolume, int64) (bool, error) {
		during.Store(s.allocated(claim.DeepCopy()))
		return true, nil
	})
	patch(s, claim, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	want := []string{
		`persistentvolumeclaims {"allocatedResourceStatuses":{"storage":"ControllerResizeInProgress"},"allocatedResources":{"storage":"2Gi"}}`,
		`persistentvolumes {"capacity":{"storage":"2Gi"}}`,
		`persistentvolumeclaims {"allocatedResourceStatuses":{"storage":null},"capacity":{"storage":"2Gi"}}`,
	}
	inProgress, finished := [2]string{"2Gi", "ControllerResizeInProgress"}, [2]string{"2Gi", ""}
	if !recovers {
		inProgress, finished = [2]string{}, [2]string{}
		want[2] = `persistentvolumeclaims {"allocatedResources":{"storage":"2Gi"},"capacity":{"storage":"2Gi"}}`
	}
	s.Expect(during.Load()).To(gomega.Equal(inProgress))
	s.Expect(s.allocated(claim)).To(gomega.Equal(finished))
	s.Eventually(func() []string { return s.expansionWrites(claim)[before:] }).Should(gomega.Equal(want))
}

func TestLessIsAllocatedOnlyAfterARefusal(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.onlyIfItRecovers()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	driver.OnAsk(func(_ *corev1.PersistentVolume, size int64) (bool, error) {
		if size > 3*gib {
			return false, status.Error(codes.ResourceExhausted, "no room")
		}
		return true, nil
	})
	patch(s, claim, ask("9Gi"))
	s.expectEvent(claim, "Warning VolumeResizeFailed", "no room")
	s.Eventually(func() [2]string { return s.allocated(claim) }).Should(gomega.Equal([2]string{"9Gi", "ControllerResizeInfeasible"}))
	patch(s, claim, ask("3Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"3Gi", "3Gi"}))
	s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{"3Gi", ""}))
	s.Expect(s.resizeConditions(claim)).To(gomega.BeEmpty())
}

// TestSizeThatMayHaveBeenGrantedIsCarriedThrough has a driver that does what it is
// asked, and is not heard.
func TestSizeThatMayHaveBeenGrantedIsCarriedThrough(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		request, want string
		failure       error
	}{
		"less is asked for meanwhile":         {"2Gi", "5Gi", status.Error(codes.DeadlineExceeded, "no answer")},
		"more is asked for meanwhile":         {"7Gi", "7Gi", status.Error(codes.Unavailable, "away")},
		"and it is not known what was done":   {"2Gi", "5Gi", errors.New("the marker can't be written")},
		"and an administrator has to help it": {"2Gi", "5Gi", status.Error(codes.FailedPrecondition, "the marker is damaged")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, driver := newScope(t), newSizedDriver()
			s.onlyIfItRecovers()
			s.class(growing)
			s.run(driver)
			claim := s.claim("data")
			volume := s.expectBound(claim)
			var failures atomic.Int64
			tenants := claim.DeepCopy() // the driver is called beside this test
			driver.OnAsk(func(_ *corev1.PersistentVolume, size int64) (bool, error) {
				if size != 5*gib {
					return true, nil
				}
				if failures.Add(1) > 2 {
					return true, nil
				}
				patch(s, tenants.DeepCopy(), ask(test.request))
				return true, test.failure
			})
			patch(s, claim, ask("5Gi"))
			s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{test.want, test.want}))
			s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{test.want, ""}))
			s.Expect(driver.Expansions()[:3]).To(gomega.Equal(inBytes("5Gi", "5Gi", "5Gi")))
			s.Expect(driver.Sizes()[volume.Name]).To(gomega.Equal(inBytes(test.want)[0]))
		})
	}
}

// TestClaimsOfEarlierReleasesGrow has claims without status.allocatedResources.
func TestClaimsOfEarlierReleasesGrow(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	recovers := s.recovers()
	s.class(growing)
	b := s.run(driver)
	grown, halfway := s.claim("grown"), s.claim("halfway")
	s.expectBound(grown)
	volume := s.expectBound(halfway)
	patch(s, grown, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(grown) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	b.stop()
	forget := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"allocatedResources":null}}`))
	s.ok(s.client.Status().Patch(t.Context(), grown, forget))
	patch(s, grown, ask("3Gi"))
	patch(s, halfway, ask("2Gi"))
	patch(s, volume, func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("2Gi") })

	s.run(driver)
	s.Eventually(func() [2]string { return s.sizes(grown) }).Should(gomega.Equal([2]string{"3Gi", "3Gi"}))
	s.Eventually(func() [2]string { return s.sizes(halfway) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	if recovers {
		s.Expect(s.allocated(grown)).To(gomega.Equal([2]string{"3Gi", ""}))
		s.Expect(s.allocated(halfway)).To(gomega.Equal([2]string{"2Gi", ""}))
	}
}

// TestStorageThatHasMoreThanIsAskedForIsCounted has a driver that did more for an
// earlier release than that lived to write down.
func TestStorageThatHasMoreThanIsAskedForIsCounted(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.class(growing)
	s.run(driver)
	claim := s.claim("data")
	driver.sizes[s.expectBound(claim).Name] = 16 * gib
	patch(s, claim, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"16Gi", "16Gi"}))
	s.Expect(cmp.Or(s.allocated(claim)[0], "16Gi")).To(gomega.Equal("16Gi"), "nothing, without the feature")
}

// TestClaimMadeAnewIsNotTakenForTheOneThatGrew also finds out what the API server
// says to a write for a claim of the same name.
func TestClaimMadeAnewIsNotTakenForTheOneThatGrew(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.class(growing)
	b := s.run(driver)
	claim := s.claim("data")
	s.expectBound(claim)
	old := claim.DeepCopy()
	driver.OnAsk(func(*corev1.PersistentVolume, int64) (bool, error) {
		s.delete(claim)
		s.Eventually(func() bool { return s.get(claim) }).Should(gomega.BeFalse())
		s.claim("data")
		return true, nil
	})
	patch(s, claim, ask("2Gi"))
	anew := old.DeepCopy()
	s.Eventually(func() bool { return s.get(anew) && anew.UID != old.UID }).Should(gomega.BeTrue())
	volume := s.expectBound(anew)
	s.Expect(volume.Name).NotTo(gomega.Equal(old.Spec.VolumeName))
	s.Consistently(func() [2]string { return s.sizes(anew) }, quiet).Should(gomega.Equal([2]string{"1Gi", "1Gi"}))
	s.Expect(s.allocated(anew)).To(gomega.Equal([2]string{}))
	s.Expect(b.metric("berth_expansions_failed_total")).To(gomega.BeZero())

	stale := `{"metadata":{"uid":"` + string(old.UID) + `","resourceVersion":"` + old.ResourceVersion + `"},"status":{"capacity":{"storage":"2Gi"}}}`
	err := s.client.Status().Patch(t.Context(), anew, client.RawPatch("application/strategic-merge-patch+json", []byte(stale)))
	s.Expect(apierrors.IsConflict(err)).To(gomega.BeTrue(), "with both it is no 422, which the UID alone gets: %v", err)
}

// TestVolumesGrowWhereTheAPIServerDropsWhatIsAllocated has an API server without
// RecoverVolumeExpansionFailure at first, as far as Berth sees. Newer ones can't be
// had without.
func TestVolumesGrowWhereTheAPIServerDropsWhatIsAllocated(t *testing.T) {
	t.Parallel()
	s, driver := newScope(t), newSizedDriver()
	s.class(growing)
	var without, attempts, writes atomic.Int64
	without.Store(1)
	s.run(driver, func(o *berthOptions) { o.newClient = dropsAllocation(&without, &writes) })
	claim := s.claim("data")
	s.expectBound(claim)
	driver.OnAsk(func(*corev1.PersistentVolume, int64) (bool, error) {
		if attempts.Add(1) < 3 {
			return false, status.Error(codes.Unavailable, "away")
		}
		return true, nil
	})
	patch(s, claim, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{}))
	s.Consistently(attempts.Load, quiet).Should(gomega.BeEquivalentTo(3), "nothing goes on when it is done")
	s.Expect(writes.Load()).To(gomega.BeNumerically("~", 4, 1), "one for each attempt, and one when it was done; once more where somebody else wrote meanwhile")

	without.Store(0) // it was updated while Berth runs
	patch(s, claim, ask("3Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"3Gi", "3Gi"}))
	if s.recovers() {
		s.Expect(s.allocated(claim)).To(gomega.Equal([2]string{"3Gi", ""}))
	}
}

// dropsAllocation has clients drop what is allocated from what is written, while
// without is not 0, and count such writes.
func dropsAllocation(without, writes *atomic.Int64) client.NewClientFunc {
	return func(config *rest.Config, options client.Options) (client.Client, error) {
		c, err := client.NewWithWatch(config, options)
		if err != nil {
			return nil, err
		}
		return interceptor.NewClient(c, interceptor.Funcs{
			SubResourcePatch: func(ctx context.Context, c client.Client, subresource string, o client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
				text, err := patch.Data(o)
				if err != nil || without.Load() == 0 || !strings.Contains(string(text), "allocatedResource") {
					return c.SubResource(subresource).Patch(ctx, o, patch, opts...)
				}
				writes.Add(1)
				var body map[string]map[string]any
				if err := json.Unmarshal(text, &body); err != nil {
					return err
				}
				delete(body["status"], "allocatedResources")
				delete(body["status"], "allocatedResourceStatuses")
				if text, err = json.Marshal(body); err != nil {
					return err
				}
				return c.SubResource(subresource).Patch(ctx, o, client.RawPatch(patch.Type(), text), opts...)
			},
		}), nil
	}
}
