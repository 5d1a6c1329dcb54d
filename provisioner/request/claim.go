package request

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

// SizeField is how an error names the size that a claim asks for.
const SizeField = "claim field spec.resources.requests.storage"

// CheckClaim refuses what an empty directory can't be, wherever it is.
func CheckClaim(claim *corev1.PersistentVolumeClaim) error {
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
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case size.Sign() <= 0:
		return provisioner.Infeasible(SizeField, size.String(), "ask for more than nothing")
	case size.CmpInt64(math.MaxInt64) > 0:
		return provisioner.Infeasible(SizeField, size.String(), "ask for less than 8Ei, more bytes than that can't be counted")
	}
	return nil
}

func refuseSource(field, kind, name string) error {
	return provisioner.Infeasible(field, kind+"/"+name, "volumes with content to begin with are not supported by this driver; leave it out")
}
