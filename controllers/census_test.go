package controllers_test

import (
	"errors"
	"testing"

	"github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// series returns the values of a metric by the value of one of its labels.
func (b *berth) series(name, label string) map[string]float64 {
	families, err := b.metrics.Gather()
	if err != nil {
		return nil
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			values[labelOf(m, label)] += m.GetGauge().GetValue()
		}
	}
	return values
}

func labelOf(m *dto.Metric, name string) string {
	for _, label := range m.GetLabel() {
		if label.GetName() == name {
			return label.GetValue()
		}
	}
	return ""
}

func TestVolumesAreCountedByPhase(t *testing.T) {
	s := newScope(t)
	b := s.run(newMemoryDriver())
	s.class(retain)
	volumes := func() map[string]float64 { return b.series("berth_volumes", "phase") }
	s.Eventually(volumes).Should(gomega.BeEmpty())
	one, two := s.claim("one"), s.claim("two")
	s.expectBound(one)
	s.expectBound(two)
	s.Eventually(volumes).Should(gomega.Equal(map[string]float64{"Bound": 2}))
	s.Expect(b.series("berth_volumes_size_bytes", "class")).To(gomega.Equal(map[string]float64{s.name: 2 << 30}))
	s.delete(one)
	s.Eventually(volumes).Should(gomega.Equal(map[string]float64{"Bound": 1, "Released": 1}))
	s.delete(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(one.UID)}})
	s.Eventually(volumes).Should(gomega.Equal(map[string]float64{"Bound": 1}))
}

// TestClaimsThatShouldHaveAVolumeWait: those that wait for their first consumer
// don't count, until there is one.
func TestClaimsThatShouldHaveAVolumeWait(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	b := s.run(driver)
	s.class(waitForConsumer)
	waiting := func() float64 { return b.series("berth_claims_waiting", "class")[s.name] }
	driver.FailProvision(libcontroller.ProvisioningFinished, errors.New("the disk is not mounted"))
	claim := s.claim("data")
	s.Eventually(func() map[string]float64 { return b.series("berth_claims_waiting", "class") }).Should(gomega.HaveKey(s.name))
	s.Consistently(waiting).Should(gomega.BeZero())
	patch(s, claim, annotate(selectedNodeKey, "a"))
	s.Eventually(waiting).Should(gomega.Equal(1.0))
	s.Eventually(func() float64 { return b.metric("berth_claims_waiting_oldest_seconds") }).Should(gomega.BeNumerically(">", 0.5))
	driver.OnProvision(nil)
	s.expectBound(claim)
	s.Eventually(waiting).Should(gomega.BeZero())
	s.Expect(b.metric("berth_claims_waiting_oldest_seconds")).To(gomega.BeZero())
}
