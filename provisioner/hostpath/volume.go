package hostpath

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// The annotations that say where on a node a volume is, beside those of package
// request.
const (
	AnnNode = "berth.storage/node"
	AnnPool = "berth.storage/pool"
	// AnnPoolID is the id in the pool.json of AnnDirectory, by which the volume is
	// found when the node's name changes or the disk is moved.
	AnnPoolID = "berth.storage/pool-id"
	// AnnDirectory is the directory of the pool that the volume lies in.
	AnnDirectory = "berth.storage/directory"
	// AnnQuota says whether the filesystem holds the volume to its size:
	// "enforced", or "none: " and the reason why not.
	AnnQuota = "berth.storage/quota"
)

// checkClaim refuses what a directory on one node can't be. Its errors are
// infeasible.
func checkClaim(claim *corev1.PersistentVolumeClaim) error {
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return provisioner.Infeasible("claim field spec.accessModes", string(mode),
				"a directory on one node's disk can't be shared between nodes; use %s or %s, or a class whose provisioner is nfs.berth.storage",
				corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
		}
	}
	return request.CheckClaim(claim)
}

// checkTopology refuses a class that excludes the only node. Its error is
// infeasible: no other node has pools.
func checkTopology(class *storagev1.StorageClass, node string, labels map[string]string) error {
	if matchesAny(class.AllowedTopologies, labels) {
		return nil
	}
	return provisioner.Infeasible("StorageClass field allowedTopologies", formatTopologies(class.AllowedTopologies),
		"node %s, the only one with pools, has none of these labels", node)
}

// matchesAny reports whether labels match one of the terms; no terms match all.
func matchesAny(terms []corev1.TopologySelectorTerm, labels map[string]string) bool {
	return len(terms) == 0 ||
		slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool { return matches(term, labels) })
}

// matches reports what kube-scheduler does: a term without expressions matches
// nothing.
func matches(term corev1.TopologySelectorTerm, labels map[string]string) bool {
	for _, expression := range term.MatchLabelExpressions {
		value, ok := labels[expression.Key]
		if !ok || !slices.Contains(expression.Values, value) {
			return false
		}
	}
	return len(term.MatchLabelExpressions) > 0
}

func formatTopologies(terms []corev1.TopologySelectorTerm) string {
	var out []string
	for _, term := range terms {
		var all []string
		for _, e := range term.MatchLabelExpressions {
			all = append(all, fmt.Sprintf("%s in (%s)", e.Key, strings.Join(e.Values, ", ")))
		}
		out = append(out, strings.Join(all, " and "))
	}
	return strings.Join(out, " or ")
}

// describe returns the volume that a server has made on node, whose hostname
// label, which need not be its name, ties the volume to it.
func describe(opts controller.ProvisionOptions, made *csi.Volume, volumeType, node, hostname string) *corev1.PersistentVolume {
	about := made.GetVolumeContext()
	marker := directory.Marker{
		Path: about[wire.ContextPath], OnDelete: directory.OnDelete(about[wire.ContextOnDelete]),
		Rights: about[wire.ContextRights], Adopted: about[wire.ContextAdopted] == wire.AdoptedYes,
	}
	volume := request.Describe(Name, opts, marker, source(volumeType, filepath.Join(about[wire.ContextDirectory], marker.Path)))
	volume.Annotations[AnnNode] = node
	volume.Annotations[AnnPool] = about[wire.ContextPool]
	if id := about[wire.ContextPoolID]; id != "" { // an older agent does not say
		volume.Annotations[AnnPoolID] = id
	}
	volume.Annotations[AnnDirectory] = about[wire.ContextDirectory]
	volume.Annotations[AnnQuota] = about[wire.ContextQuota]
	volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{
				Key:      corev1.LabelHostname,
				Operator: corev1.NodeSelectorOpIn,
				Values:   []string{hostname},
			}},
		}},
	}}
	return volume
}

func source(volumeType, path string) corev1.PersistentVolumeSource {
	if volumeType == typeHostPath {
		// Not DirectoryOrCreate: kubelet would make an empty directory when the
		// disk is not mounted.
		exists := corev1.HostPathDirectory
		return corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &exists}}
	}
	return corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}}
}

// LiesIn reports whether volume is one of this driver in a directory of a pool of
// node: by its annotations, or by its path when it was made before there were
// annotations for that.
func LiesIn(volume *corev1.PersistentVolume, node, pool, base string) bool {
	about := volume.Annotations
	if about[request.AnnDriver] != Name || about[AnnNode] != node || about[AnnPool] != pool {
		return false
	}
	return about[AnnDirectory] == base || strings.HasPrefix(sourcePath(volume), base+"/")
}

// sourcePath returns the directory that a PersistentVolume shows to pods.
func sourcePath(volume *corev1.PersistentVolume) string {
	switch {
	case volume.Spec.Local != nil:
		return volume.Spec.Local.Path
	case volume.Spec.HostPath != nil:
		return volume.Spec.HostPath.Path
	}
	return ""
}

func quantity(bytes uint64) resource.Quantity {
	return *resource.NewQuantity(int64(min(bytes, math.MaxInt64)), resource.BinarySI)
}
