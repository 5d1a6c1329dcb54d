package hostpath

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// The annotations of a PersistentVolume that the driver made: with them Delete
// needs neither the class nor the claim.
const (
	AnnDriver   = "berth.storage/driver"
	AnnNode     = "berth.storage/node"
	AnnPool     = "berth.storage/pool"
	AnnPath     = "berth.storage/path"
	AnnOnDelete = "berth.storage/on-delete"
	AnnClaim    = "berth.storage/claim"
)

const sizeField = "claim field spec.resources.requests.storage"

// checkClaim refuses what a directory on one node can't be. Its errors are
// infeasible.
func checkClaim(claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.Selector != nil {
		return provisioner.Infeasible("claim field spec.selector", metav1.FormatLabelSelector(claim.Spec.Selector),
			"a selector chooses among existing volumes, none is made for it; leave it out")
	}
	if mode := claim.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return provisioner.Infeasible("claim field spec.volumeMode", string(*mode), "a directory is no block device; use %s", corev1.PersistentVolumeFilesystem)
	}
	if source := claim.Spec.DataSource; source != nil {
		return refuseSource("claim field spec.dataSource", source.Kind, source.Name)
	}
	if source := claim.Spec.DataSourceRef; source != nil {
		return refuseSource("claim field spec.dataSourceRef", source.Kind, source.Name)
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return provisioner.Infeasible("claim field spec.accessModes", string(mode),
				"a directory on one node's disk can't be shared between nodes; use %s or %s, or a class whose provisioner is nfs.berth.storage",
				corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
		}
	}
	return nil
}

func refuseSource(field, kind, name string) error {
	return provisioner.Infeasible(field, kind+"/"+name, "volumes with content to begin with are not supported by this driver; leave it out")
}

// checkTopology refuses a class that excludes the node. Its error is
// infeasible: no other node has pools.
func checkTopology(class *storagev1.StorageClass, node string, labels map[string]string) error {
	if len(class.AllowedTopologies) == 0 {
		return nil
	}
	if slices.ContainsFunc(class.AllowedTopologies, func(term corev1.TopologySelectorTerm) bool { return matches(term, labels) }) {
		return nil
	}
	return provisioner.Infeasible("StorageClass field allowedTopologies", formatTopologies(class.AllowedTopologies),
		"node %s, the only one with pools, has none of these labels", node)
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

// description is what a PersistentVolume is made of.
type description struct {
	options  controller.ProvisionOptions
	params   parameters
	marker   directory.Marker
	node     string
	hostname string // the value of the Node's label, which need not be its name
	path     string // absolute
}

func describe(d description) *corev1.PersistentVolume {
	class, claim := d.options.StorageClass, d.options.PVC
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: d.options.PVName,
			Annotations: map[string]string{
				AnnDriver:   Name,
				AnnNode:     d.node,
				AnnPool:     d.marker.Pool,
				AnnPath:     d.marker.Path,
				AnnOnDelete: string(d.marker.OnDelete),
				AnnClaim:    types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}.String(),
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage].DeepCopy()},
			AccessModes:                   slices.Clone(claim.Spec.AccessModes),
			PersistentVolumeReclaimPolicy: policy,
			MountOptions:                  slices.Clone(class.MountOptions),
			VolumeMode:                    &mode,
			PersistentVolumeSource:        source(d.params.volumeType, d.path),
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{
						Key:      corev1.LabelHostname,
						Operator: corev1.NodeSelectorOpIn,
						Values:   []string{d.hostname},
					}},
				}},
			}},
		},
	}
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

// roundDown makes a size readable as a quantity: to whole GiB, or MiB when it
// is less than one.
func roundDown(bytes uint64) uint64 {
	unit := uint64(1 << 30)
	if bytes < unit {
		unit = 1 << 20
	}
	return bytes - bytes%unit
}

func quantity(bytes uint64) resource.Quantity {
	return *resource.NewQuantity(int64(min(bytes, math.MaxInt64)), resource.BinarySI)
}
