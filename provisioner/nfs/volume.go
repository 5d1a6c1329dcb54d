package nfs

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/request"
)

// The annotations that say on which share a volume is and how to reach it,
// beside those of package request.
const (
	// AnnServer and AnnShare are the parameters of the class.
	AnnServer = "berth.storage/nfs-server"
	AnnShare  = "berth.storage/nfs-share"
	// AnnVersion, AnnPort and AnnMountPort are absent when the protocol finds
	// out by itself.
	AnnVersion   = "berth.storage/nfs-version"
	AnnPort      = "berth.storage/nfs-port"
	AnnMountPort = "berth.storage/nfs-mount-port"
)

// describe returns the volume at the path of marker on share.
func describe(opts controller.ProvisionOptions, params parameters, marker directory.Marker) *corev1.PersistentVolume {
	share := params.share
	volume := request.Describe(Name, opts, marker, corev1.PersistentVolumeSource{
		NFS: &corev1.NFSVolumeSource{Server: share.Server, Path: share.join(marker.Path)},
	})
	volume.Annotations[AnnServer] = share.Server
	volume.Annotations[AnnShare] = share.Path
	if share.Version != "" {
		volume.Annotations[AnnVersion] = share.Version
	}
	for name, port := range map[string]uint16{AnnPort: share.Port, AnnMountPort: share.MountPort} {
		if port != 0 {
			volume.Annotations[name] = strconv.Itoa(int(port))
		}
	}
	volume.Spec.MountOptions = slices.Clone(params.mountOptions)
	volume.Spec.NodeAffinity = affinity(opts.StorageClass)
	return volume
}

// affinity ties a volume to the nodes that its class allows: those that reach
// the server. A class without allowedTopologies allows all.
func affinity(class *storagev1.StorageClass) *corev1.VolumeNodeAffinity {
	var terms []corev1.NodeSelectorTerm
	for _, topology := range class.AllowedTopologies {
		var term corev1.NodeSelectorTerm
		for _, e := range topology.MatchLabelExpressions {
			term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{
				Key: e.Key, Operator: corev1.NodeSelectorOpIn, Values: slices.Clone(e.Values),
			})
		}
		if len(term.MatchExpressions) > 0 {
			terms = append(terms, term)
		}
	}
	if len(terms) == 0 {
		return nil
	}
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

// Volume is a volume of this driver, as its PersistentVolume describes it.
type Volume struct {
	Share Share
	// Path is where its directory is, relative to the share.
	Path string
}

// Describes reads what a PersistentVolume says of its place. It fails when the
// volume is not of this driver, or when what it says to pods is not what it
// says to the driver.
func Describes(volume *corev1.PersistentVolume) (Volume, error) {
	if driver := volume.Annotations[request.AnnDriver]; driver != Name {
		return Volume{}, fmt.Errorf("annotation %s is %q, not %q", request.AnnDriver, driver, Name)
	}
	v := Volume{
		Path: volume.Annotations[request.AnnPath],
		Share: Share{
			Server:  volume.Annotations[AnnServer],
			Path:    volume.Annotations[AnnShare],
			Version: volume.Annotations[AnnVersion],
		},
	}
	if err := checkServer(v.Share.Server); err != nil {
		return Volume{}, fmt.Errorf("annotation %s: %q %w", AnnServer, v.Share.Server, err)
	}
	if err := checkSharePath(v.Share.Path); err != nil {
		return Volume{}, fmt.Errorf("annotation %s: %q %w", AnnShare, v.Share.Path, err)
	}
	if err := directory.CheckPath(v.Path); err != nil {
		return Volume{}, fmt.Errorf("annotation %s: %w", request.AnnPath, err)
	}
	switch v.Share.Version {
	case "", version3, version40, version41, versionAny4:
	default:
		return Volume{}, fmt.Errorf("annotation %s is %q, which is no version", AnnVersion, v.Share.Version)
	}
	for name, port := range map[string]*uint16{AnnPort: &v.Share.Port, AnnMountPort: &v.Share.MountPort} {
		value, ok := volume.Annotations[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return Volume{}, fmt.Errorf("annotation %s is %q, which is no port", name, value)
		}
		*port = uint16(n)
	}
	want := corev1.NFSVolumeSource{Server: v.Share.Server, Path: v.Share.join(v.Path)}
	if source := volume.Spec.NFS; source == nil || source.Server != want.Server || source.Path != want.Path {
		return Volume{}, fmt.Errorf("its source is %v, by its annotations it should be %s:%s", source, want.Server, want.Path)
	}
	return v, nil
}
