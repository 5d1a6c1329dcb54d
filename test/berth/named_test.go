package berth_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
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
