package node

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// defaults are what parameters stand for that are not given, and say which there
// are.
var defaults = map[string]string{
	wire.ParamPool:           wire.DefaultPool,
	wire.ParamPath:           "",
	wire.ParamOnDelete:       string(directory.OnDeleteDelete),
	wire.ParamExisting:       wire.ExistingRefuse,
	wire.ParamDryRun:         wire.DryRunNo,
	wire.ParamMode:           wire.DefaultMode,
	wire.ParamUID:            strconv.Itoa(os.Geteuid()),
	wire.ParamGID:            strconv.Itoa(os.Getegid()),
	wire.ParamQuota:          string(directory.QuotaAuto),
	wire.ParamClass:          "",
	wire.ParamClaimUID:       "",
	wire.ParamClaimName:      "",
	wire.ParamClaimNamespace: "",
}

// creation is a CreateVolumeRequest, read.
type creation struct {
	pool string
	spec directory.Spec
	// onlyExisting asks for a volume that was made before.
	onlyExisting bool
	// dryRun asks what would become of it.
	dryRun bool
	// limit is the most that the volume may have, 0 for no limit.
	limit int64
}

// readCreation reads a request. Its errors are for whoever made it: the driver has
// checked all of it before.
func readCreation(req *csi.CreateVolumeRequest) (creation, error) {
	if req.GetName() == "" {
		return creation{}, invalid("name", "", "a volume needs one")
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return creation{}, err
	}
	if req.GetVolumeContentSource() != nil {
		return creation{}, invalid("volume_content_source", "", "volumes with content to begin with are not supported")
	}
	if len(req.GetMutableParameters()) > 0 {
		return creation{}, invalid("mutable_parameters", "", "volumes have none")
	}
	wanted, limit, err := readRange(req.GetCapacityRange())
	if err != nil {
		return creation{}, err
	}
	c, err := readParameters(req.GetParameters())
	if err != nil {
		return creation{}, err
	}
	c.limit = limit
	c.spec.SizeBytes = wanted
	c.spec.Volume = wire.VolumeName(req.GetName())
	if c.spec.ClaimUID == "" {
		c.spec.ClaimUID = types.UID(c.spec.Volume)
	}
	if _, given := req.GetParameters()[wire.ParamPath]; !given {
		c.spec.Path = c.spec.Volume
	}
	c.onlyExisting = c.spec.Path == ""
	if c.dryRun && !c.spec.Adopt {
		return creation{}, invalid("parameter "+wire.ParamDryRun, wire.DryRunYes, "only what is to be adopted can be asked for")
	}
	return c, nil
}

// readParameters reads the parameters of a class, or of a volume.
func readParameters(given map[string]string) (creation, error) {
	values := maps.Clone(defaults)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, known := defaults[name]; !known {
			return creation{}, invalid("parameter "+name, given[name], "there is no such parameter; known are "+strings.Join(slices.Sorted(maps.Keys(defaults)), ", "))
		}
		values[name] = given[name]
	}
	r := reader{values: values}
	c := creation{
		pool: values[wire.ParamPool],
		spec: directory.Spec{
			Claim:    types.NamespacedName{Namespace: values[wire.ParamClaimNamespace], Name: values[wire.ParamClaimName]},
			ClaimUID: types.UID(values[wire.ParamClaimUID]),
			Class:    values[wire.ParamClass],
			Path:     values[wire.ParamPath],
			OnDelete: directory.OnDelete(r.oneOf(wire.ParamOnDelete, string(directory.OnDeleteDelete), string(directory.OnDeleteArchive), string(directory.OnDeleteRetain))),
			Adopt:    r.oneOf(wire.ParamExisting, wire.ExistingRefuse, wire.ExistingAdopt) == wire.ExistingAdopt,
			Mode:     r.number(wire.ParamMode, 8, 0o7777),
			Quota:    directory.QuotaMode(r.oneOf(wire.ParamQuota, string(directory.QuotaAuto), string(directory.QuotaRequired), string(directory.QuotaNone))),
		},
	}
	c.dryRun = r.oneOf(wire.ParamDryRun, wire.DryRunNo, wire.DryRunYes) == wire.DryRunYes
	// The highest id means "leave as it is" to chown(2).
	uid, gid := r.number(wire.ParamUID, 10, math.MaxUint32-1), r.number(wire.ParamGID, 10, math.MaxUint32-1)
	c.spec.UID, c.spec.GID = &uid, &gid
	if r.err == nil && c.spec.Path != "" {
		if err := directory.CheckPath(c.spec.Path); err != nil {
			r.fail(wire.ParamPath, err.Error())
		}
	}
	return c, r.err
}

// reader reads parameters, and keeps the first error.
type reader struct {
	values map[string]string
	err    error
}

func (r *reader) fail(name, problem string) {
	if r.err == nil {
		r.err = invalid("parameter "+name, r.values[name], problem)
	}
}

func (r *reader) oneOf(name string, allowed ...string) string {
	if !slices.Contains(allowed, r.values[name]) {
		r.fail(name, "choose one of "+strings.Join(allowed, ", "))
	}
	return r.values[name]
}

func (r *reader) number(name string, base int, most uint64) uint32 {
	n, err := strconv.ParseUint(r.values[name], base, 32)
	if err != nil || n > most {
		r.fail(name, fmt.Sprintf("write a number in base %d, at most %s", base, strconv.FormatUint(most, base)))
	}
	return uint32(n)
}

// invalid says what is wrong with a request.
func invalid(field, value, problem string) error {
	return refuse(codes.InvalidArgument, "%s: %s: %s", field, quoted(value), problem)
}

// quoted quotes a value that may be of any length.
func quoted(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(s[:most], ""))
	}
	return fmt.Sprintf("%q", s)
}

// readRange returns how much a volume has to have, and may have at most; 0 for no
// limit.
func readRange(r *csi.CapacityRange) (required, limit int64, err error) {
	required, limit = r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 || limit > 0 && limit < required {
		return 0, 0, refuse(codes.OutOfRange, "capacity_range: from %d to %d bytes: want no less than nothing, and no limit below what is required", required, limit)
	}
	return required, limit, nil
}

// supported says what a directory on one node can be to pods.
var supported = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
}

// canBe reports whether a directory on one node can be all that is asked.
func canBe(all []*csi.VolumeCapability) bool { return checkCapabilities(all) == nil }

// checkCapabilities refuses what a directory on one node can't be.
func checkCapabilities(all []*csi.VolumeCapability) error {
	if len(all) == 0 {
		return invalid("volume_capabilities", "", "a volume needs at least one")
	}
	for _, c := range all {
		mode := c.GetAccessMode().GetMode()
		switch {
		case c.GetMount() == nil:
			return invalid("volume_capabilities", fmt.Sprint(c.GetAccessType()), "a directory is no block device; ask for a mount")
		case !slices.Contains(supported, mode):
			return invalid("volume_capabilities", mode.String(), "a directory on one node's disk can't be shared between nodes")
		}
	}
	return nil
}
