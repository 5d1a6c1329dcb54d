package controllers_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// These tests make kube-controller-manager's one worker for volumes fall behind,
// and then claims. A binder that does not wait for that worker has most of
// them called Lost, again and again, with a warning that data is lost. They
// are not parallel: other tests would have to wait with them.

// watchLost returns a function that tells of every change of a claim of the
// scope to Lost since the call.
func (s *scope) watchLost() func() []string {
	s.t.Helper()
	c, err := client.NewWithWatch(sharedControlPlane(s.t).Config(), client.Options{})
	s.ok(err)
	w, err := c.Watch(s.t.Context(), &corev1.PersistentVolumeClaimList{}, client.InNamespace(s.name))
	s.ok(err)
	s.t.Cleanup(w.Stop)
	var mu sync.Mutex
	var lost []string
	start := time.Now()
	go func() {
		for event := range w.ResultChan() {
			if claim, ok := event.Object.(*corev1.PersistentVolumeClaim); ok && claim.Status.Phase == corev1.ClaimLost {
				mu.Lock()
				lost = append(lost, fmt.Sprintf("%s after %s", claim.Name, time.Since(start).Round(time.Millisecond)))
				mu.Unlock()
			}
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), lost...)
	}
}

// makeClaims makes n claims, one every interval, and waits until they are Bound.
// It returns the longest lag that Berth knew of meanwhile.
func (s *scope) makeClaims(b *berth, n int, every time.Duration) (lag float64) {
	s.t.Helper()
	var claims []*corev1.PersistentVolumeClaim
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for i := range n {
		claims = append(claims, s.claim(fmt.Sprintf("new-%d", i)))
		lag = max(lag, b.metric("berth_cluster_volume_lag_seconds"))
		<-ticker.C
	}
	s.Eventually(func() int {
		lag = max(lag, b.metric("berth_cluster_volume_lag_seconds"))
		waiting := 0
		for _, claim := range claims {
			if s.get(claim); claim.Status.Phase != corev1.ClaimBound {
				waiting++
			}
		}
		return waiting
	}, 3*time.Minute, 250*time.Millisecond).Should(gomega.BeZero())
	return lag
}

func TestNoClaimIsLostWhileVolumesAreBeingReleased(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	b := s.run(driver)
	var old []*corev1.PersistentVolumeClaim
	for i := range 150 {
		old = append(old, s.claim(fmt.Sprintf("old-%d", i)))
	}
	for _, claim := range old {
		s.expectBound(claim)
	}
	lost := s.watchLost()
	for _, claim := range old {
		s.delete(claim)
	}
	lag := s.makeClaims(b, 6, 2*time.Second)
	s.Consistently(lost, quiet).Should(gomega.BeEmpty())
	s.Expect(lag).To(gomega.BeNumerically(">", 2), "kube-controller-manager did not fall behind: this shows nothing")
	s.Eventually(driver.Stored, 2*time.Minute).Should(gomega.HaveLen(6))
}

func TestNoClaimIsLostBesideReleasedVolumesOfAClaimThatWasMadeAnew(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	anew := s.claim("anew", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To("none-" + s.name) })
	const released = 120 // 6 s of reads in every 15
	for i := range released {
		volume := s.staticVolume(fmt.Sprintf("%s-old-%d", s.name, i), func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: s.name, Name: anew.Name, UID: types.UID(fmt.Sprintf("gone-%d", i)),
			}
		})
		s.setPhase(volume, `{"status":{"phase":"Released"}}`)
		t.Cleanup(func() {
			_ = s.client.Delete(context.Background(), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume.Name}})
		})
	}
	b := s.run(driver)
	lost := s.watchLost()
	lag := s.makeClaims(b, 8, 2500*time.Millisecond) // over more than a resync
	s.Consistently(lost, quiet).Should(gomega.BeEmpty())
	s.Expect(lag).To(gomega.BeNumerically(">", 5), "Berth does not reckon with the reads")
}
