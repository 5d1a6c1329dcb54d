package berth_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestALiveVolumeWithoutMarkerIsNotAdopted: its marker was lost (by fsck, in an old
// backup), so that only its PersistentVolume tells whose its directory is. Once its
// claim is gone and it is to be retained, it may be; nothing is removed as long as two
// volumes name it.
func TestALiveVolumeWithoutMarkerIsNotAdopted(t *testing.T) {
	s := newSite(t)
	s.class(s.name, "pathPattern", "${pvc.namespace}/${pvc.name}")
	s.class(s.name+"-adopting", "pathPattern", "${pvc.namespace}/${pvc.annotations['dir']}", "existing", "adopt")
	p := s.start("")
	keep := s.claim("keep")
	volume := s.expectBound(keep)
	data := filepath.Join(s.dirOf(volume), "data")
	s.ok(os.WriteFile(data, []byte("precious"), 0o600))
	p.stop()
	s.ok(os.Remove(filepath.Join(s.pool, ".berth/volumes", volume.Name+".json")))
	p = s.start("")

	other := s.newClaim("other", s.name+"-adopting")
	other.Annotations = map[string]string{"dir": "keep"}
	s.create(other)
	s.Eventually(func() []string { return s.warnings(other) }).Should(gomega.ContainElement(gomega.And(
		gomega.ContainSubstring(`existing: "adopt": PersistentVolume `+volume.Name+" names "+s.dirOf(volume)), gomega.ContainSubstring("Retain"))))
	s.Expect(s.markers()).To(gomega.BeEmpty())

	retained := volume.DeepCopy()
	retained.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	s.ok(s.client.Patch(t.Context(), retained, client.MergeFrom(volume)))
	s.delete(keep)
	adopted := s.expectBound(other)
	s.Expect(s.dirOf(adopted)).To(gomega.Equal(s.dirOf(volume)))

	s.delete(other)
	s.Eventually(func() []string { return s.warnings(adopted) }).Should(gomega.ContainElement(
		gomega.ContainSubstring("not touching " + s.dirOf(volume) + ": PersistentVolume " + volume.Name + " names it too")))
	text, err := os.ReadFile(data)
	s.ok(err)
	s.Expect(string(text)).To(gomega.Equal("precious"))
	s.delete(volume)
	s.Eventually(func() bool { return s.get(adopted) }).Should(gomega.BeFalse())
	s.Expect(s.markers()).To(gomega.BeEmpty())
	p.stop()
}

// TestAVolumeOfTheWholePoolHoldsNothingUp: administrators make such volumes for
// backups. It does not say whose the directories in it are.
func TestAVolumeOfTheWholePoolHoldsNothingUp(t *testing.T) {
	s := newSite(t)
	s.class(s.name, "pathPattern", "${pvc.namespace}/${pvc.name}")
	for name, directory := range map[string]string{"pool": s.pool, "above": filepath.Dir(s.pool), "root": "/"} {
		backup := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: s.name + "-" + name},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: directory}},
			},
		}
		s.create(backup)
		t.Cleanup(func() { _ = s.client.Delete(context.Background(), backup) })
	}
	p := s.start("")
	claim := s.claim("data")
	volume := s.expectBound(claim)
	s.delete(claim)
	s.Eventually(func() bool { return s.get(volume) }).Should(gomega.BeFalse())
	s.Expect(s.warnings(volume)).To(gomega.BeEmpty())
	s.Expect(s.markers()).To(gomega.BeEmpty())
	p.stop()
}
