package hostpath

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"golang.org/x/sync/singleflight"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// Name is the driver's name: the provisioner field of its StorageClasses.
const Name = wire.PluginName

// DefaultUnreachableAfter is how long a node may not answer before the claims that
// wait for it go back to the scheduler.
const DefaultUnreachableAfter = 5 * time.Minute

// Options configure a Driver.
type Options struct {
	// Nodes reaches the nodes' servers. With a *Local the driver is for that
	// node only, whatever its Node object says.
	Nodes Nodes
	// Node returns a Node as it is now. What it returns is only read.
	Node func(ctx context.Context, name string) (*corev1.Node, error)
	// InUse reports whether Kubernetes has volumes of this driver in a directory
	// of a pool on a node (LiesIn tells). An empty directory is not taken for a
	// new pool then: the disk it should be is not mounted. It is asked only then.
	// When nil, nobody is asked.
	InUse func(ctx context.Context, node, pool, directory string) (bool, error)
	// NamedBy returns the name of a PersistentVolume other than except that a claim
	// has or may get, and that names path in the directory base of the pool with that
	// id on node, or one in base above it, or one inside it; "" for none. Such a
	// directory is not adopted. When nil, nobody is asked.
	NamedBy func(ctx context.Context, node, poolID, base, path, except string) (volume string, err error)
	// UnreachableAfter is how long a node, or the disks of a pool there, may not
	// answer before a claim whose pod was scheduled to it goes back to the
	// scheduler; 0 for
	// DefaultUnreachableAfter.
	UnreachableAfter time.Duration
	// Clock measures that; nil for the real one.
	Clock clock.PassiveClock
	Log   logr.Logger
}

// Driver provisions node-local directories.
type Driver struct {
	options Options
	// only is the name of the one node, "" when there may be many.
	only    string
	silence *silence
	// found is what nodes have said of directories to be adopted.
	found *adoptions
	// inUse asks Options.InUse once for all who ask at a time.
	inUse singleflight.Group
	// pools is which pools nodes have said that they have; hearing asks each once
	// for all who want to know at a time.
	pools   *sightings
	hearing singleflight.Group
}

var (
	_ provisioner.Driver           = (*Driver)(nil)
	_ provisioner.Expander         = (*Driver)(nil)
	_ provisioner.Inventory        = (*Driver)(nil)
	_ provisioner.BackgroundWorker = (*Driver)(nil)
	_ provisioner.NodeLocal        = (*Driver)(nil)
	_ provisioner.Noticer          = (*Driver)(nil)
	_ controller.DeletionGuard     = (*Driver)(nil)
)

// New returns the driver. It calls no server yet.
func New(o Options) (*Driver, error) {
	switch {
	case o.Nodes == nil:
		return nil, errors.New("hostpath driver: no way to reach nodes")
	case o.Node == nil:
		return nil, errors.New("hostpath driver: no way to read a Node")
	}
	if o.UnreachableAfter == 0 {
		o.UnreachableAfter = DefaultUnreachableAfter
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	d := &Driver{
		options: o, silence: newSilence(o.Clock, o.UnreachableAfter),
		found: newAdoptions(o.Clock), pools: newSightings(o.Clock),
	}
	if local, ok := o.Nodes.(*Local); ok {
		d.only = local.server.NodeName()
	}
	return d, nil
}

// ShouldDelete reports whether the volume lies on a node of this driver.
func (d *Driver) ShouldDelete(ctx context.Context, volume *corev1.PersistentVolume) bool {
	return d.ignores(ctx, volume) == ""
}

// Delete moves the volume's directory to the trash or the archive, or lets it
// go, after the marker has confirmed everything that the PersistentVolume says.
func (d *Driver) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	if reason := d.ignores(ctx, volume); reason != "" {
		return &controller.IgnoredError{Reason: reason}
	}
	id, expected, err := identify(volume)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w; not touching anything", volume.Name, err)
	}
	return d.onPoolOf(ctx, volume, func(ctx context.Context, server csi.ControllerClient) error {
		_, err := server.DeleteVolume(expected.Attach(ctx), &csi.DeleteVolumeRequest{VolumeId: id.String()})
		return err
	})
}

// Expand promises the volume more, which a quota enforces where there is one.
// Whether there is may have changed since the volume was made: what its node says
// now is the volume's annotation from then on.
func (d *Driver) Expand(ctx context.Context, volume *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	if reason := d.ignores(ctx, volume); reason != "" {
		return provisioner.Expansion{}, &controller.IgnoredError{Reason: reason}
	}
	id, expected, err := identify(volume)
	if err != nil {
		return provisioner.Expansion{}, fmt.Errorf("expand volume %s: %w", volume.Name, err)
	}
	var has int64
	var state string
	err = d.onPoolOf(ctx, volume, func(ctx context.Context, server csi.ControllerClient) error {
		made, err := server.ControllerExpandVolume(expected.Attach(ctx), &csi.ControllerExpandVolumeRequest{
			VolumeId: id.String(), CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		})
		if err != nil {
			return err
		}
		has = made.GetCapacityBytes()
		now, err := server.ControllerGetVolume(expected.Attach(ctx), &csi.ControllerGetVolumeRequest{VolumeId: id.String()})
		state = now.GetVolume().GetVolumeContext()[wire.ContextQuota]
		return err
	})
	if err != nil {
		return provisioner.Expansion{}, outOfRange(err, size)
	}
	note := "the size is not enforced: volumes of a pool have its filesystem's space in common"
	if state == wire.QuotaEnforced {
		note = "the filesystem enforces it"
	}
	return provisioner.Expansion{Size: has, Note: note, Annotations: map[string]string{AnnQuota: state}}, nil
}

// onPoolOf calls f with the server that has the pool of volume.
func (d *Driver) onPoolOf(ctx context.Context, volume *corev1.PersistentVolume, f func(context.Context, csi.ControllerClient) error) error {
	home, id := volume.Annotations[AnnNode], volume.Annotations[AnnPoolID]
	if d.only != "" && id == "" {
		home = d.only // ignores has found it there
	}
	node, err := d.serving(ctx, home, id, sourcePath(volume))
	if err != nil {
		return err
	}
	return d.on(wire.AttachPoolID(ctx, id), node, f)
}

// identify returns the id of volume, and what has to be true of its directory.
func identify(volume *corev1.PersistentVolume) (wire.VolumeID, wire.Expectation, error) {
	expect, err := request.Expectation(volume)
	if err != nil {
		return wire.VolumeID{}, wire.Expectation{}, err
	}
	id := wire.NewVolumeID(volume.Annotations[AnnPool], volume.Name, expect.ClaimUID, expect.Path)
	return id, wire.Expectation{Expectation: expect, Source: sourcePath(volume)}, id.Check()
}

// ignores says why a volume is none of this driver's business, or "".
func (d *Driver) ignores(ctx context.Context, volume *corev1.PersistentVolume) string {
	reason := d.ignoresByName(volume)
	if reason != "" && d.only != "" && d.keeps(ctx, volume) {
		return "" // the node had another name
	}
	return reason
}

// ignoresByName is ignores for those who go by the name of the volume's node.
func (d *Driver) ignoresByName(volume *corev1.PersistentVolume) string {
	if driver := volume.Annotations[request.AnnDriver]; driver != Name {
		return fmt.Sprintf("volume %s has annotation %s %q, not %q", volume.Name, request.AnnDriver, driver, Name)
	}
	switch node := volume.Annotations[AnnNode]; {
	case d.only != "" && node != d.only:
		return fmt.Sprintf("volume %s is on node %q, not %q", volume.Name, node, d.only)
	case node == "":
		return fmt.Sprintf("volume %s has no annotation %s", volume.Name, AnnNode)
	}
	return ""
}

// Run does what servers in this process have to do besides being called, until
// ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	if worker, ok := d.options.Nodes.(provisioner.BackgroundWorker); ok {
		return worker.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

// Notice says whether the directory of volume was made or adopted, that its size is
// not enforced, unless its class wants it so, and that its directory has other rights
// than its class asks for.
func (d *Driver) Notice(volume *corev1.PersistentVolume) string {
	notices := []string{request.NoticeOrigin(volume)}
	if request.IsAdopted(volume) {
		notices[0] += " on node " + volume.Annotations[AnnNode]
	}
	if why, not := strings.CutPrefix(volume.Annotations[AnnQuota], "none: "); not && why != directory.UnenforcedByClass {
		notices = append(notices, "its size is not enforced: "+why)
	}
	if rights := request.NoticeRights(volume); rights != "" {
		notices = append(notices, rights)
	}
	return strings.Join(notices, "; ")
}

// NodeOf returns the name of the node that holds volume, or "".
func (d *Driver) NodeOf(volume *corev1.PersistentVolume) string {
	if d.ignoresByName(volume) != "" {
		return ""
	}
	return volume.Annotations[AnnNode]
}

// Nodes returns the names of the nodes that have a server.
func (d *Driver) Nodes(ctx context.Context) ([]string, error) { return d.names(ctx) }

// checkMade refuses what a server must not answer: the path goes into a
// PersistentVolume.
func checkMade(made *csi.Volume) error {
	about := made.GetVolumeContext()
	if err := directory.CheckBase(about[wire.ContextDirectory]); err != nil {
		return fmt.Errorf("the node's server answered with a wrong directory: %w", err)
	}
	if err := directory.CheckPath(about[wire.ContextPath]); err != nil {
		return fmt.Errorf("the node's server answered with a wrong path: %w", err)
	}
	return nil
}
