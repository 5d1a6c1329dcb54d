package request

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner/directory"
)

// The annotations that a PersistentVolume of any driver has: with them, and
// the driver's own, Delete needs neither the class nor the claim.
const (
	// AnnDriver is the name of the driver.
	AnnDriver = "berth.storage/driver"
	// AnnPath is the directory's path, relative to the driver's base.
	AnnPath = "berth.storage/path"
	// AnnOnDelete is a directory.OnDelete.
	AnnOnDelete = "berth.storage/on-delete"
	// AnnClaim is namespace and name of the claim.
	AnnClaim = "berth.storage/claim"
	// AnnRights is there when the directory has not got the mode or the owner that
	// its class asks for, since its filesystem gave it others. It says what differs.
	AnnRights = "berth.storage/rights"
	// AnnAdopted is "true" when the directory was there before the volume, and
	// absent when it was made.
	AnnAdopted = "berth.storage/adopted"
)

const adopted = "true"

// IsAdopted reports whether the directory of volume was there before it.
func IsAdopted(volume *corev1.PersistentVolume) bool {
	return volume.Annotations[AnnAdopted] == adopted
}

// NoticeOrigin says whether the directory of volume was made or adopted.
func NoticeOrigin(volume *corev1.PersistentVolume) string {
	if IsAdopted(volume) {
		return fmt.Sprintf("adopted the directory %q with what is in it", volume.Annotations[AnnPath])
	}
	return "made a new directory"
}

// Path returns the path that the class's pattern gives to a claim.
func (d Directory) Path(opts controller.ProvisionOptions) (string, error) {
	return d.Pattern.Expand(directory.Variables{
		Namespace:   opts.PVC.Namespace,
		Claim:       opts.PVC.Name,
		Volume:      opts.PVName,
		Labels:      opts.PVC.Labels,
		Annotations: opts.PVC.Annotations,
	})
}

// Spec is the directory at path that a claim asks for.
func (d Directory) Spec(opts controller.ProvisionOptions, path string) directory.Spec {
	size := opts.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	return directory.Spec{
		Volume:    opts.PVName,
		Claim:     types.NamespacedName{Namespace: opts.PVC.Namespace, Name: opts.PVC.Name},
		ClaimUID:  opts.PVC.UID,
		Class:     opts.StorageClass.Name,
		SizeBytes: size.Value(),
		Path:      path,
		OnDelete:  d.OnDelete,
		Adopt:     d.Adopt,
		Mode:      d.Mode,
		UID:       d.UID,
		GID:       d.GID,
	}
}

// Describe returns the PersistentVolume for the directory of marker, which is
// source to pods. The driver may add annotations, mount options and a node
// affinity.
func Describe(driver string, opts controller.ProvisionOptions, marker directory.Marker, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
	class, claim := opts.StorageClass, opts.PVC
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: opts.PVName,
			Annotations: map[string]string{
				AnnDriver:   driver,
				AnnPath:     marker.Path,
				AnnOnDelete: string(marker.OnDelete),
				AnnClaim:    types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name}.String(),
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage].DeepCopy()},
			AccessModes:                   slices.Clone(claim.Spec.AccessModes),
			PersistentVolumeReclaimPolicy: policy,
			MountOptions:                  slices.Clone(class.MountOptions),
			VolumeMode:                    &mode,
			PersistentVolumeSource:        source,
		},
	}
	if marker.Adopted {
		volume.Annotations[AnnAdopted] = adopted
	}
	if marker.Rights != "" {
		volume.Annotations[AnnRights] = marker.Rights
	}
	return volume
}

// NoticeRights returns what the owner of volume's claim should know of who may use
// its directory, or "".
func NoticeRights(volume *corev1.PersistentVolume) string {
	rights := volume.Annotations[AnnRights]
	if rights == "" {
		return ""
	}
	return "its directory has other rights than its class asks for: " + rights
}

// Expectation returns what volume says of its directory, for comparison with
// the ownership marker.
func Expectation(volume *corev1.PersistentVolume) (directory.Expectation, error) {
	path := volume.Annotations[AnnPath]
	if err := directory.CheckPath(path); err != nil {
		return directory.Expectation{}, fmt.Errorf("annotation %s: %w", AnnPath, err)
	}
	if volume.Spec.ClaimRef == nil || volume.Spec.ClaimRef.UID == "" {
		return directory.Expectation{}, fmt.Errorf("spec.claimRef names no claim UID to compare with the ownership marker")
	}
	return directory.Expectation{
		ClaimUID: volume.Spec.ClaimRef.UID,
		Path:     path,
		OnDelete: directory.OnDelete(volume.Annotations[AnnOnDelete]),
	}, nil
}
