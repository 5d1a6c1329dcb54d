package e2e_test

import (
	"fmt"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
)

// TestSchedulerAvoidsTheFullNode: the pool of node1 is too small for any of
// these, and that of node2 for the last one, until it grows.
func TestSchedulerAvoidsTheFullNode(t *testing.T) {
	r := newRoom(t)
	for n := range 4 {
		name := fmt.Sprintf("fits-%d", n)
		r.claim(name, "sized", "32Mi")
		r.make(newPod(name, "true", ofClaim(name)))
	}
	for n := range 4 {
		name := fmt.Sprintf("fits-%d", n)
		r.Eventually(r.phase(name)).Should(Equal(corev1.PodSucceeded))
		r.Expect(r.nodeOf(name)).To(Equal("node2"))
	}
	r.claim("large", "sized", "600Mi")
	r.make(newPod("large", "true", ofClaim("large")))
	r.Eventually(r.events("large")).Should(ContainElement(And(
		HavePrefix("FailedScheduling: "), ContainSubstring("2 node(s) did not have enough free storage"))))

	grow := shared.Node("node2").Command(t.Context(), "mount", "-o", "remount,size=1g", "/mnt/sized")
	output, err := grow.CombinedOutput()
	r.Expect(err).NotTo(HaveOccurred(), string(output))
	r.Eventually(r.phase("large")).Should(Equal(corev1.PodSucceeded))
	r.Expect(r.nodeOf("large")).To(Equal("node2"))
}
