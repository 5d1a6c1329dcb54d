package hostpath

import (
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// parameters are a StorageClass's, parsed.
type parameters struct {
	request.Directory
	pool       string
	volumeType string
	quota      directory.QuotaMode
}

// quotaParameter says whether a volume is held to its size.
const quotaParameter = "quota"

// The values of the parameter volumeType.
const (
	typeLocal    = "local"
	typeHostPath = "hostPath"
)

// defaults are what a class that says nothing gets. Directories belong to whom
// Berth runs as on the node unless the class names an owner: root, as a rule.
var defaults = request.DirectoryDefaults(map[string]string{
	"pool":         wire.DefaultPool,
	"volumeType":   typeLocal,
	quotaParameter: string(directory.QuotaAuto),
})

// parseParameters reads the parameters of class. Its errors are infeasible.
func parseParameters(class *storagev1.StorageClass) (parameters, error) {
	read := request.ReadParameters(class, defaults)
	p := parameters{
		pool:       read.Value("pool"),
		volumeType: read.OneOf("volumeType", typeLocal, typeHostPath),
		quota:      directory.QuotaMode(read.OneOf(quotaParameter, string(directory.QuotaAuto), string(directory.QuotaRequired), string(directory.QuotaNone))),
		Directory:  read.Directory(),
	}
	if err := read.Err(); err != nil {
		return parameters{}, err
	}
	if p.volumeType == typeHostPath && len(class.MountOptions) > 0 {
		// kubelet fails to mount such a volume: pkg/volume/hostpath says that
		// it does not support mount options; pkg/volume/local does.
		return parameters{}, provisioner.Infeasible("StorageClass field mountOptions", strings.Join(class.MountOptions, ","),
			"kubelet does not support mount options for volumeType %s; leave them out or use volumeType %s", typeHostPath, typeLocal)
	}
	return p, nil
}

// existing is the value of wire.ParamExisting.
func (p parameters) existing() string {
	if p.Adopt {
		return wire.ExistingAdopt
	}
	return wire.ExistingRefuse
}

// request returns what a node server is asked for a claim. An empty path asks for
// a volume that was made before.
func (p parameters) request(opts controller.ProvisionOptions, path string) *csi.CreateVolumeRequest {
	spec := p.Spec(opts, path)
	given := map[string]string{
		wire.ParamPool:           p.pool,
		wire.ParamPath:           path,
		wire.ParamOnDelete:       string(p.OnDelete),
		wire.ParamExisting:       p.existing(),
		wire.ParamMode:           strconv.FormatUint(uint64(p.Mode), 8),
		wire.ParamQuota:          string(p.quota),
		wire.ParamClass:          spec.Class,
		wire.ParamClaimUID:       string(spec.ClaimUID),
		wire.ParamClaimName:      spec.Claim.Name,
		wire.ParamClaimNamespace: spec.Claim.Namespace,
	}
	if p.Adopt {
		given[wire.ParamDryRun] = wire.DryRunNo
	}
	for name, id := range map[string]*uint32{wire.ParamUID: p.UID, wire.ParamGID: p.GID} {
		if id != nil {
			given[name] = strconv.FormatUint(uint64(*id), 10)
		}
	}
	mode := csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	for _, asked := range opts.PVC.Spec.AccessModes {
		if asked == corev1.ReadWriteOncePod {
			mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		}
	}
	return &csi.CreateVolumeRequest{
		Name:          opts.PVName,
		CapacityRange: &csi.CapacityRange{RequiredBytes: spec.SizeBytes},
		Parameters:    given,
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		}},
	}
}
