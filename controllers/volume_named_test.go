package controllers_test

import (
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
)

// TestADirectoryThatAnotherVolumeNamesIsNotRemoved, whoever made that volume. It is once
// the other one is gone.
func TestADirectoryThatAnotherVolumeNamesIsNotRemoved(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(s *scope, v *corev1.PersistentVolume){
		"a slash at the end": func(_ *scope, v *corev1.PersistentVolume) { v.Spec.HostPath.Path += "/" },
		"of another provisioner": func(_ *scope, v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{provisionedByKey: "rancher.io/local-path"}
		},
		"a directory above": func(_ *scope, v *corev1.PersistentVolume) { v.Spec.HostPath.Path = "/nowhere/" + v.Name },
		"a directory inside": func(_ *scope, v *corev1.PersistentVolume) {
			v.Spec.HostPath.Path += "/a/b"
		},
		"a copy of the volume": func(s *scope, v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{provisionedByKey: s.driverName()}
		},
		"bound": func(s *scope, v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: s.name, Name: "theirs"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, driver := newScope(t), newMemoryDriver()
			s.class()
			driver.OnFinish(func(v *corev1.PersistentVolume) { v.Spec.HostPath.Path = "/nowhere/" + s.name + "-other/data" })
			s.run(driver)
			claim := s.claim("data")
			volume := s.expectBound(claim)
			second := s.staticVolume(s.name+"-other", func(v *corev1.PersistentVolume) {
				v.Spec.HostPath.Path = volume.Spec.HostPath.Path
				other(s, v)
			})
			if second.Spec.ClaimRef != nil { // the cache keeps little of such volumes
				s.claim("theirs", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = second.Name })
				s.Eventually(volumePhase(s, second)).Should(gomega.Equal(corev1.VolumeBound))
			}
			s.Eventually(volumePhase(s, second)).ShouldNot(gomega.BeElementOf("", corev1.VolumePending))
			s.delete(claim)
			s.expectEvent(volume, "Warning VolumeFailedDelete", "not touching "+volume.Spec.HostPath.Path+": PersistentVolume "+second.Name+" names it too")
			s.Consistently(driver.Deletes, quiet).Should(gomega.BeEmpty())
			s.Expect(driver.Stored()).To(gomega.Equal([]string{volume.Name}))
			s.delete(newClaimNamed(s.name, "theirs"))
			s.delete(second)
			s.expectGone(volume)
			s.Expect(driver.Stored()).To(gomega.BeEmpty())
		})
	}
}

// TestVolumesOfOtherNodesAreNoMatter: fleets have the same paths on every node.
func TestVolumesOfOtherNodesAreNoMatter(t *testing.T) {
	t.Parallel()
	s := newScope(t)
	here, there := s.node("here"), s.node("there")
	driver := newNodeDriver(map[string]int64{here: gib << 4, there: gib << 4})
	s.class(waitForConsumer)
	driver.OnFinish(func(v *corev1.PersistentVolume) {
		v.Spec.HostPath.Path = "/nowhere/" + s.name
	})
	s.run(driver)
	claim, volume := s.boundOn(here, "data")
	affinity := func(hostname string) *corev1.VolumeNodeAffinity {
		return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{hostname}}},
		}}}}
	}
	s.staticVolume(s.name+"-there", func(v *corev1.PersistentVolume) {
		v.Spec.HostPath.Path, v.Spec.NodeAffinity, v.Spec.StorageClassName = volume.Spec.HostPath.Path, affinity(hostnameOf(there)), ""
	})
	s.delete(claim)
	s.expectGone(volume)
	s.Expect(s.reasons(volume)).To(gomega.BeEmpty())

	claim, volume = s.boundOn(here, "again")
	second := s.staticVolume(s.name+"-here", func(v *corev1.PersistentVolume) {
		v.Spec.HostPath.Path, v.Spec.NodeAffinity, v.Spec.StorageClassName = volume.Spec.HostPath.Path, affinity(hostnameOf(here)), ""
	})
	s.Eventually(volumePhase(s, second)).Should(gomega.Equal(corev1.VolumeAvailable))
	s.delete(claim)
	s.expectEvent(volume, "Warning VolumeFailedDelete", second.Name)
	s.delete(second)
	s.expectGone(volume)
}
