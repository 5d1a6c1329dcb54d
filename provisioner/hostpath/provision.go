package hostpath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// nodesAtOnce is how many nodes are asked for their room, or for their volumes, at
// a time. When there are more, a volume that may be made anywhere goes to the best
// of so many chosen at random, as long as one of them has room: that spreads load
// nearly as well as asking all, and costs the same on any cluster.
const nodesAtOnce = 32

// maxNewDirectories bounds how many directories may become pools in one call.
const maxNewDirectories = 16

// elsewhere says that a volume can't be made on one node, but may be on another.
type elsewhere struct{ error }

func (e elsewhere) Unwrap() error { return e.error }

// attempt is a claim that a volume is to be made for.
type attempt struct {
	controller.ProvisionOptions
	params parameters
}

// Provision makes the directory for a claim, on the node its pod was scheduled to
// or on one with room, or finds the one to be adopted, and describes it as a
// PersistentVolume.
func (d *Driver) Provision(ctx context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	params, err := parseParameters(opts.StorageClass)
	if d.only != "" && opts.SelectedNodeName != "" && opts.SelectedNodeName != d.only && !params.Adopt {
		return nil, controller.ProvisioningReschedule,
			fmt.Errorf("pod was scheduled to node %s, but this driver has pools on node %s only", opts.SelectedNodeName, d.only)
	}
	if err == nil {
		err = checkClaim(opts.PVC)
	}
	if err == nil {
		err = params.CheckAdopt()
	}
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	a := attempt{opts, params}
	switch {
	case params.Adopt:
		return d.adopt(ctx, a)
	case opts.SelectedNodeName != "":
		return d.provisionOnSelected(ctx, a)
	case d.only != "":
		volume, err := d.provisionOn(ctx, d.only, a)
		return volume, stateOf(err), err
	}
	volume, err := d.provisionAnywhere(ctx, a)
	return volume, stateOf(err), err
}

// provisionOnSelected makes the volume where the pod was scheduled to. When it
// can't be had there, or the node or the pool's disks do not answer for too long,
// the claim goes back to the scheduler.
func (d *Driver) provisionOnSelected(ctx context.Context, a attempt) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	node := a.SelectedNodeName
	volume, err := d.provisionOn(ctx, node, a)
	if err == nil {
		return volume, controller.ProvisioningFinished, nil
	}
	var other elsewhere
	_, unavailable := provisioner.RetryAfter(err)
	what, silent := "node "+node, d.silence.of(spot{node: node})
	if silent < d.options.UnreachableAfter {
		what, silent = fmt.Sprintf("pool %s on node %s", a.params.pool, node), d.silence.of(spot{node, a.params.pool})
	}
	switch {
	case errors.As(err, &other):
		return nil, controller.ProvisioningReschedule, err
	case errors.Is(err, ErrNoServer):
		return nil, controller.ProvisioningReschedule, fmt.Errorf("pod was scheduled to a node without pools: %w", err)
	case silent >= d.options.UnreachableAfter && unavailable:
		return nil, controller.ProvisioningReschedule,
			fmt.Errorf("%s, which the pod was scheduled to, has not answered for %s; the scheduler has to choose anew: %w", what, silent.Round(time.Second), err)
	}
	return nil, stateOf(err), err
}

// stateOf tells callers that give up on deleted claims whether something may still
// be going on.
func stateOf(err error) controller.ProvisioningState {
	var unavailable *provisioner.UnavailableError
	if errors.As(err, &unavailable) {
		return controller.ProvisioningInBackground
	}
	switch wire.CodeOf(err) {
	case codes.Aborted, codes.DeadlineExceeded, codes.Canceled, codes.Unavailable:
		return controller.ProvisioningInBackground
	}
	return controller.ProvisioningFinished
}

// provisionOn makes the volume on one node.
func (d *Driver) provisionOn(ctx context.Context, node string, a attempt) (*corev1.PersistentVolume, error) {
	hostname, err := d.checkNode(ctx, node, a.StorageClass)
	if err != nil {
		return nil, err
	}
	path, pathErr := a.params.Path(a.ProvisionOptions)
	if pathErr != nil {
		// Labels may have changed since an earlier call chose a path, which
		// counts.
		path = ""
	}
	if err := d.checkPool(ctx, node, a.params.pool); err != nil {
		return nil, d.otherNodeMayDo(err, node, a)
	}
	if err := d.refuseNamed(ctx, node, a, path); errors.Is(err, wire.ErrNoPath) {
		return nil, pathErr
	} else if err != nil {
		return nil, d.otherNodeMayDo(err, node, a)
	}
	made, err := d.create(ctx, node, a.params, a.params.request(a.ProvisionOptions, path))
	switch {
	case errors.Is(err, wire.ErrNoPath):
		return nil, pathErr
	case err != nil:
		return nil, d.otherNodeMayDo(err, node, a)
	}
	if err := checkMade(made); err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	about := made.GetVolumeContext()
	d.pools.learn(node, []wire.PoolReport{{
		Pool: about[wire.ContextPool], Directory: about[wire.ContextDirectory], ID: about[wire.ContextPoolID],
	}}, false)
	return describe(a.ProvisionOptions, made, a.params.volumeType, node, hostname), nil
}

// checkNode returns the hostname label of a node that the class may use.
func (d *Driver) checkNode(ctx context.Context, name string, class *storagev1.StorageClass) (string, error) {
	node, err := d.options.Node(ctx, name)
	if apierrors.IsNotFound(err) && d.only == "" {
		return "", elsewhere{fmt.Errorf("there is no node %s any more: %w", name, err)}
	}
	if err != nil {
		return "", fmt.Errorf("read the labels of node %s: %w", name, err)
	}
	if d.only != "" {
		if err := checkTopology(class, name, node.Labels); err != nil {
			return "", err
		}
	} else if !matchesAny(class.AllowedTopologies, node.Labels) {
		return "", elsewhere{fmt.Errorf("node %s has none of the labels in allowedTopologies, %s", name, formatTopologies(class.AllowedTopologies))}
	}
	hostname := node.Labels[corev1.LabelHostname]
	if hostname == "" {
		return "", fmt.Errorf("node %s lacks the label %s, which ties a volume to its node", name, corev1.LabelHostname)
	}
	return hostname, nil
}

// otherNodeMayDo marks an error that is of one node only. What the disks of the
// only node there is can't do can't be had at all.
func (d *Driver) otherNodeMayDo(err error, node string, a attempt) error {
	if a.params.Adopt {
		return d.adoptionRefused(err, a)
	}
	var infeasible *provisioner.InfeasibleError
	unlimited := errors.As(err, &infeasible) && infeasible.Field == "StorageClass parameter "+quotaParameter
	var shared *sharedPoolError
	switch code := wire.CodeOf(err); {
	case code == codes.ResourceExhausted, errors.As(err, &shared):
		return elsewhere{err}
	case code == codes.OutOfRange:
		err = outOfRangeOf(err, a.PVC.Spec.Resources.Requests[corev1.ResourceStorage])
	case !unlimited:
		return err
	}
	if d.only != "" {
		return err
	}
	return elsewhere{fmt.Errorf("node %s: %s", node, err.Error())} // not wrapped: it must not count as infeasible
}

// create asks a node's server for the volume, and answers its questions about
// directories that it has not used yet.
func (d *Driver) create(ctx context.Context, node string, params parameters, req *csi.CreateVolumeRequest) (*csi.Volume, error) {
	at := spot{node, params.pool}
	if req.GetParameters()[wire.ParamDryRun] == wire.DryRunYes {
		at.pool = "" // it asks all disks, of which one is enough to make volumes
	}
	for range maxNewDirectories {
		var made *csi.Volume
		err := d.at(ctx, at, func(ctx context.Context, server csi.ControllerClient) error {
			resp, err := server.CreateVolume(ctx, req)
			made = resp.GetVolume()
			return err
		})
		var unused *wire.NewPoolError
		if !errors.As(err, &unused) {
			return made, err
		}
		refusal, askErr := d.mayInitialise(ctx, node, params.pool, unused.Directory)
		if askErr != nil {
			return nil, fmt.Errorf("pool %s: the base is empty and not initialised as a pool: whether pool %s has volumes is unknown: %w", params.pool, params.pool, askErr)
		}
		ctx = wire.AttachNewPool(ctx, unused.Directory, refusal)
	}
	return nil, fmt.Errorf("pool %s on node %s has more than %d new directories", params.pool, node, maxNewDirectories)
}

// mayInitialise says why a directory must not become a pool, or "".
func (d *Driver) mayInitialise(ctx context.Context, node, pool, directory string) (refusal string, _ error) {
	if d.options.InUse == nil {
		return "", nil
	}
	inUse, err, _ := d.inUse.Do(node+"\x00"+pool+"\x00"+directory, func() (any, error) {
		return d.options.InUse(ctx, node, pool, directory)
	})
	if err != nil || inUse == false {
		return "", err
	}
	return fmt.Sprintf("but Kubernetes has volumes in pool %s on node %s: is its disk mounted?", pool, node), nil
}

// provisionAnywhere makes the volume on the node with the most room, or the next
// that works.
func (d *Driver) provisionAnywhere(ctx context.Context, a attempt) (*corev1.PersistentVolume, error) {
	candidates, err := d.candidates(ctx, a.StorageClass)
	if err != nil {
		return nil, err
	}
	size := a.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	var refused []string
	for group := range slices.Chunk(candidates, nodesAtOnce) {
		d.askRoom(ctx, a.StorageClass, group)
		nodes, unfit := chooseNodes(group, a.params.pool, size.Value())
		refused = append(refused, unfit...)
		for _, node := range nodes {
			volume, err := d.provisionOn(ctx, node, a)
			if err == nil || !worthAnother(err) {
				return volume, err
			}
			refused = append(refused, fmt.Sprintf("%s: %v", node, err))
		}
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("no node has pools: no berth agent is there")
	}
	return nil, fmt.Errorf("no node can take the volume: %s", reasons(refused))
}

// worthAnother reports whether another node may do what one has refused. One that
// may still be at work on the volume has not.
func worthAnother(err error) bool {
	switch wire.CodeOf(err) {
	case codes.Aborted, codes.DeadlineExceeded:
		return false
	}
	var (
		other       elsewhere
		unavailable *provisioner.UnavailableError
	)
	return errors.As(err, &other) || errors.As(err, &unavailable) || errors.Is(err, ErrNoServer) ||
		wire.CodeOf(err) == codes.FailedPrecondition
}

// candidates returns the nodes that have a server, those that are fit for a volume
// first, shuffled.
func (d *Driver) candidates(ctx context.Context, class *storagev1.StorageClass) ([]candidate, error) {
	names, err := d.options.Nodes.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the nodes that have pools: %w", err)
	}
	var fit, unfit []candidate
	for _, i := range rand.Perm(len(names)) { //nolint:gosec // it spreads load, no more
		c := candidate{node: names[i]}
		node, err := d.options.Node(ctx, names[i])
		switch {
		case apierrors.IsNotFound(err):
			c.unfit = "is no Node"
		case err != nil:
			return nil, fmt.Errorf("read node %s: %w", names[i], err)
		default:
			c.unfit = unfitFor(node, class.AllowedTopologies)
		}
		if c.unfit != "" {
			unfit = append(unfit, c)
			continue
		}
		fit = append(fit, c)
	}
	return append(fit, unfit...), nil
}

// askRoom asks the nodes that are fit for their room, all at once.
func (d *Driver) askRoom(ctx context.Context, class *storagev1.StorageClass, candidates []candidate) {
	group := errgroup.Group{}
	for i := range candidates {
		c := &candidates[i]
		if c.unfit != "" {
			continue
		}
		group.Go(func() error {
			c.capacity, c.err = d.Capacity(ctx, class, c.node)
			return nil
		})
	}
	_ = group.Wait()
}

// Capacity says how much room a class's volumes have on a node.
func (d *Driver) Capacity(ctx context.Context, class *storagev1.StorageClass, node string) (provisioner.Capacity, error) {
	params, err := parseParameters(class)
	if err == nil {
		err = params.CheckAdopt() // its claims are to hear of it, rather than wait for room
	}
	if err != nil {
		return provisioner.Capacity{}, err
	}
	if d.pools.anyShared(node, params.pool) {
		return provisioner.Capacity{}, nil // nothing is made there
	}
	var room provisioner.Capacity
	err = d.on(ctx, node, func(ctx context.Context, server csi.ControllerClient) error {
		resp, err := server.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{
			wire.ParamPool: params.pool, wire.ParamQuota: string(params.quota), wire.ParamExisting: params.existing(),
		}})
		room = provisioner.Capacity{Available: resp.GetAvailableCapacity(), MaximumVolumeSize: resp.GetMaximumVolumeSize().GetValue()}
		return err
	})
	return room, err
}
