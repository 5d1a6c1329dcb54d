package hostpath

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/request"
)

// Name is the driver's name: the provisioner field of its StorageClasses.
const Name = "hostpath.berth.storage"

// Options configure a Driver.
type Options struct {
	// NodeName is the Kubernetes Node this process runs on.
	NodeName string
	// Pools maps the names of pools to absolute directories.
	Pools map[string]string
	// NodeLabels returns the Node's labels as they are now.
	NodeLabels func(ctx context.Context) (map[string]string, error)
	// PoolInUse reports whether Kubernetes has volumes of this driver in pool
	// on this node. An empty directory is not taken for a new pool then: the
	// disk it should be is not mounted. When nil, nobody is asked.
	PoolInUse func(ctx context.Context, pool string) (bool, error)
	// RequireMount refuses pools that are not the root of a filesystem.
	RequireMount bool
	Log          logr.Logger
}

// Driver provisions node-local directories.
type Driver struct {
	nodeName   string
	nodeLabels func(ctx context.Context) (map[string]string, error)
	node       *node
	log        logr.Logger
}

var (
	_ provisioner.Driver           = (*Driver)(nil)
	_ provisioner.Expander         = (*Driver)(nil)
	_ provisioner.Inventory        = (*Driver)(nil)
	_ provisioner.BackgroundWorker = (*Driver)(nil)
	_ controller.DeletionGuard     = (*Driver)(nil)
)

// New returns the driver for one node. It does not look at the pools'
// directories: each is opened when it is first needed.
func New(o Options) (*Driver, error) {
	if o.NodeName == "" {
		return nil, errors.New("hostpath driver: no node name")
	}
	if o.NodeLabels == nil {
		return nil, errors.New("hostpath driver: no way to read the labels of the node")
	}
	node, err := newNode(o)
	if err != nil {
		return nil, fmt.Errorf("hostpath driver: %w", err)
	}
	return &Driver{nodeName: o.NodeName, nodeLabels: o.NodeLabels, node: node, log: o.Log}, nil
}

// ParsePool reads the value of the flag --pool: a name, "=" and an absolute
// directory.
func ParsePool(s string) (name, path string, err error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", fmt.Errorf("pool %q: write name=/directory", s)
	}
	return name, path, checkPool(name, path)
}

func checkPool(name, path string) error {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return fmt.Errorf("pool name %q: %s", name, strings.Join(problems, ", "))
	}
	if err := directory.CheckBase(path); err != nil {
		return fmt.Errorf("pool %s: %w", name, err)
	}
	return nil
}

// Provision makes the directory for a claim and describes it as a
// PersistentVolume.
func (d *Driver) Provision(ctx context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if opts.SelectedNodeName != "" && opts.SelectedNodeName != d.nodeName {
		return nil, controller.ProvisioningReschedule,
			fmt.Errorf("pod was scheduled to node %s, but this driver has pools on node %s only", opts.SelectedNodeName, d.nodeName)
	}
	volume, err := d.provision(ctx, opts)
	return volume, controller.ProvisioningFinished, err
}

func (d *Driver) provision(ctx context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, error) {
	params, err := parseParameters(opts.StorageClass)
	if err != nil {
		return nil, err
	}
	if err := checkClaim(opts.PVC); err != nil {
		return nil, err
	}
	base, err := d.node.base(params.pool)
	if err != nil {
		return nil, err
	}
	labels, err := d.nodeLabels(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the labels of node %s: %w", d.nodeName, err)
	}
	if err := checkTopology(opts.StorageClass, d.nodeName, labels); err != nil {
		return nil, err
	}
	hostname := labels[corev1.LabelHostname]
	if hostname == "" {
		return nil, fmt.Errorf("node %s lacks the label %s, which ties a volume to its node", d.nodeName, corev1.LabelHostname)
	}
	size := opts.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	if err := d.checkSize(ctx, params.pool, size); err != nil {
		return nil, err
	}
	path, err := params.Path(opts)
	if err != nil {
		// Labels may have changed since an earlier call chose a path, which
		// counts.
		chosen, ok := d.node.pathOf(ctx, params.pool, opts.PVName)
		if !ok {
			return nil, err
		}
		path = chosen
	}
	marker, err := d.node.create(ctx, params.pool, params.Spec(opts, path))
	if err != nil {
		return nil, err
	}
	return describe(opts, marker, params.volumeType, filepath.Join(base, marker.Path), d.nodeName, hostname), nil
}

// checkSize refuses a request that no amount of tidying up would make room for.
// Less than that is not refused: directories share their filesystem's space,
// and without a quota a request reserves nothing.
func (d *Driver) checkSize(ctx context.Context, pool string, size resource.Quantity) error {
	space, err := d.node.space(ctx, pool)
	if err != nil {
		return fmt.Errorf("pool %s: %w", pool, err)
	}
	if size.Cmp(quantity(space.Total)) > 0 {
		readable := quantity(roundDown(space.Total))
		return provisioner.Infeasible(request.SizeField, size.String(), "pool %s on node %s has %s in all; ask for no more than that, or use another pool", pool, d.nodeName, readable.String())
	}
	return nil
}

// ShouldDelete reports whether the volume lies on this node.
func (d *Driver) ShouldDelete(_ context.Context, volume *corev1.PersistentVolume) bool {
	return d.ignores(volume) == ""
}

// Delete moves the volume's directory to the trash or the archive, or lets it
// go, after the marker has confirmed everything that the PersistentVolume says.
func (d *Driver) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	if reason := d.ignores(volume); reason != "" {
		return &controller.IgnoredError{Reason: reason}
	}
	pool, expect, err := d.find(volume)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w; not touching anything", volume.Name, err)
	}
	return d.node.delete(ctx, pool, volume.Name, expect)
}

// Expand records the new size, which nothing enforces.
func (d *Driver) Expand(ctx context.Context, volume *corev1.PersistentVolume, size int64) (string, error) {
	if reason := d.ignores(volume); reason != "" {
		return "", &controller.IgnoredError{Reason: reason}
	}
	pool, expect, err := d.find(volume)
	if err != nil {
		return "", fmt.Errorf("expand volume %s: %w", volume.Name, err)
	}
	if err := d.checkSize(ctx, pool, *resource.NewQuantity(size, resource.BinarySI)); err != nil {
		return "", err
	}
	return "the size is not enforced: volumes of a pool have its filesystem's space in common", d.node.resize(ctx, pool, volume.Name, expect, size)
}

// find returns the pool of volume, and what has to be true of its directory.
func (d *Driver) find(volume *corev1.PersistentVolume) (pool string, _ directory.Expectation, _ error) {
	expect, err := request.Expectation(volume)
	if err != nil {
		return "", directory.Expectation{}, err
	}
	pool = volume.Annotations[AnnPool]
	base, err := d.node.base(pool)
	if err != nil {
		return "", directory.Expectation{}, err
	}
	if source, want := sourcePath(volume), filepath.Join(base, expect.Path); source != want {
		return "", directory.Expectation{}, fmt.Errorf("its path is %q, by its annotations and the pool's directory it should be %q", source, want)
	}
	return pool, expect, nil
}

// ignores says why a volume is none of this driver's business, or "".
func (d *Driver) ignores(volume *corev1.PersistentVolume) string {
	if driver := volume.Annotations[request.AnnDriver]; driver != Name {
		return fmt.Sprintf("volume %s has annotation %s %q, not %q", volume.Name, request.AnnDriver, driver, Name)
	}
	if node := volume.Annotations[AnnNode]; node != d.nodeName {
		return fmt.Sprintf("volume %s is on node %q, not %q", volume.Name, node, d.nodeName)
	}
	return ""
}

// Discard drops a volume, as long as its directory is empty.
func (d *Driver) Discard(ctx context.Context, volume string) error {
	return d.node.discard(ctx, volume)
}

// Volumes yields what the pools have records of. A pool that can't be read
// does not hide the others; its error comes last.
func (d *Driver) Volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return d.node.volumes(ctx)
}

// Run empties the pools' trash.
func (d *Driver) Run(ctx context.Context) error { return d.node.run(ctx) }

// PoolNames returns the names of the pools, sorted.
func (d *Driver) PoolNames() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for name := range d.node.pools {
			if !yield(name) {
				return
			}
		}
	})
}

// PoolStats counts what a pool holds.
func (d *Driver) PoolStats(ctx context.Context, pool string) (directory.Stats, error) {
	return d.node.stats(ctx, pool)
}

// PoolSpace reports the size of a pool's filesystem.
func (d *Driver) PoolSpace(ctx context.Context, pool string) (directory.Space, error) {
	return d.node.space(ctx, pool)
}

// Close gives the pools free for another process. The driver must not be in
// use.
func (d *Driver) Close() error { return d.node.close() }
