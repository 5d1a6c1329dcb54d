package hostpath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

const (
	// poolsFresh is for how long what a node has said of its pools is believed
	// before something is made or ended there.
	poolsFresh = time.Minute
	// poolsDoubted is the same when another node has said that it has that pool.
	poolsDoubted = 5 * time.Second
	// poolsStale is when a node is asked again although nobody wants anything of it.
	poolsStale = 5 * time.Minute
	// poolMemory is for how long a node that can't be asked is believed to have the
	// pools that it had. It is longer than an agent takes to be replaced, and a
	// machine to start anew.
	poolMemory = 10 * time.Minute
)

var _ provisioner.PoolKeeper = (*Driver)(nil)

// sharedPoolError says that a pool can't be told from another one.
type sharedPoolError struct{ pool provisioner.SharedPool }

func (e *sharedPoolError) Error() string {
	var places []string
	for _, p := range e.pool.Places {
		places = append(places, p.String())
	}
	return fmt.Sprintf("%s have the same pool id %s: one is a copy of the other, or both are the same directory. "+
		"Nothing is made, grown or removed in them until the copy has an id of its own: stop Berth on the copy's node, "+
		`give "id" in .berth/pool.json another value there, and start it again (docs/operations.md#copied-pools)`,
		strings.Join(places, " and "), e.pool.ID)
}

// hear makes sure that what is known of a node's pools is not older than that.
func (d *Driver) hear(ctx context.Context, node string, age time.Duration) error {
	if d.pools.heardWithin(node, age) {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // others may wait for the same answer
	_, err, _ := d.hearing.Do(node, func() (any, error) {
		header := metadata.MD{}
		err := d.on(ctx, node, func(ctx context.Context, server csi.ControllerClient) error {
			_, err := server.ControllerGetCapabilities(wire.AskForPools(ctx), &csi.ControllerGetCapabilitiesRequest{}, grpc.Header(&header))
			return err
		})
		if err != nil && wire.CodeOf(err) != codes.Unimplemented { // which says nothing either
			return nil, err
		}
		d.learn(node, header, true)
		return nil, nil
	})
	return err // as any call to that node fails
}

// learn notes what a node's server has said with an answer: of all its pools, or of
// some. It returns the reports.
func (d *Driver) learn(node string, header metadata.MD, all bool) []wire.PoolReport {
	reports, err := wire.PoolsIn(header)
	if err != nil {
		d.options.Log.Error(err, "A node says something about its pools that can't be understood", "node", node)
	}
	d.pools.learn(node, reports, all)
	if err != nil {
		d.pools.doubt(node)
	}
	return reports
}

// serving returns the node whose server has the pool of a volume that names the
// node home: home, unless the node's name has changed or the disk was moved. It
// fails when the pool can't be told from another one. A volume that does not say
// its pool's id lies in the pool that home has at its path.
func (d *Driver) serving(ctx context.Context, home, id, path string) (string, error) {
	unheard := d.hear(ctx, home, poolsFresh)
	if unheard != nil && !errors.Is(unheard, ErrNoServer) && !d.isGone(ctx, home) {
		return "", unheard
	}
	if id == "" {
		return home, d.checkSole(ctx, d.pools.at(home, path))
	}
	if err := d.checkSole(ctx, id); err != nil {
		return "", err
	}
	if d.pools.has(home, id) {
		return home, nil
	}
	others := d.pools.nodesWith(id)
	if len(others) != 1 {
		return home, nil
	}
	if !d.rulesOut(ctx, home, id) {
		return "", &provisioner.UnavailableError{RetryAfter: poolsDoubted, Err: fmt.Errorf(
			"node %s has the pool %s, but it is not known yet whether node %s, which the volume names, has it too", others[0], id, home)}
	}
	return others[0], nil
}

// rulesOut reports whether node surely does not have the pool: it has said so, or
// is gone.
func (d *Driver) rulesOut(ctx context.Context, node, id string) bool {
	return d.pools.rulesOut(node, id) || !d.pools.has(node, id) && d.isGone(ctx, node)
}

// keeps reports whether the only node of this driver has a volume that names
// another one: by the id of its pool or, when the volume does not say that, by the
// marker, which must agree with all that the volume says. While the node can't say,
// it may have it.
func (d *Driver) keeps(ctx context.Context, volume *corev1.PersistentVolume) bool {
	about := volume.Annotations
	if about[request.AnnDriver] != Name || about[AnnNode] == "" {
		return false
	}
	if id := about[AnnPoolID]; id != "" {
		return d.hear(ctx, d.only, poolsFresh) != nil || d.pools.has(d.only, id)
	}
	id, expected, err := identify(volume)
	if err != nil {
		return false
	}
	err = d.on(ctx, d.only, func(ctx context.Context, server csi.ControllerClient) error {
		_, err := server.ControllerGetVolume(expected.Attach(ctx), &csi.ControllerGetVolumeRequest{VolumeId: id.String()})
		return err
	})
	_, unavailable := provisioner.RetryAfter(err)
	return err == nil || unavailable
}

// checkSole fails when the id is that of more than one pool. Whoever has it is
// asked again: a disk may just have been moved.
func (d *Driver) checkSole(ctx context.Context, id string) error {
	if places := d.recheck(ctx, id); len(places) > 1 {
		return &sharedPoolError{provisioner.SharedPool{ID: id, Places: places}}
	}
	return nil
}

// checkPool fails when something made in a pool on a node might be made in two
// places, or in the wrong one.
func (d *Driver) checkPool(ctx context.Context, node, pool string) error {
	var refused *wire.RemoteError // a server that answers so tells more when it is to make something
	if err := d.hear(ctx, node, poolsFresh); err != nil && !errors.As(err, &refused) {
		return err
	}
	for _, id := range d.pools.idsIn(node, pool) {
		if err := d.checkSole(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// recheck returns where the pool is. When that is in several places, it asks the
// nodes again, and forgets what a node has said that is gone, or that could not be
// asked for long.
func (d *Driver) recheck(ctx context.Context, id string) []provisioner.PoolPlace {
	places := d.pools.places(id)
	if id == "" || len(places) < 2 {
		return places
	}
	nodes := d.pools.nodesWith(id)
	group := errgroup.Group{}
	for _, node := range nodes {
		group.Go(func() error {
			if err := d.hear(ctx, node, poolsDoubted); err != nil && !errors.Is(err, ErrNotAsked) {
				d.pools.forget(node, d.isGone(ctx, node))
			}
			return nil
		})
	}
	_ = group.Wait()
	return d.pools.places(id)
}

// isGone reports whether there is no Node of that name. That of the only node a
// driver is for is never looked up: others don't count.
func (d *Driver) isGone(ctx context.Context, node string) bool {
	if d.only != "" {
		return node != d.only
	}
	_, err := d.options.Node(ctx, node)
	return apierrors.IsNotFound(err)
}

// MeetNodes asks the nodes that have not said lately which pools they have, and those
// that another one contradicts.
func (d *Driver) MeetNodes(ctx context.Context) error {
	names, err := d.names(ctx)
	if err != nil {
		return err
	}
	unmet := slices.DeleteFunc(slices.Sorted(slices.Values(names)), func(node string) bool { return d.pools.heardWithin(node, poolsStale) })
	var failed []error
	for some := range slices.Chunk(unmet, nodesAtOnce) {
		failures := make([]error, len(some))
		group := errgroup.Group{}
		for i, node := range some {
			group.Go(func() error {
				failures[i] = d.hear(ctx, node, poolsFresh)
				return nil
			})
		}
		_ = group.Wait()
		failed = append(failed, failures...)
	}
	for _, id := range d.pools.doubtful() {
		d.recheck(ctx, id) // what another node has by now
	}
	return errors.Join(failed...)
}

// names returns the names of the nodes that have a server.
func (d *Driver) names(ctx context.Context) ([]string, error) {
	names, err := d.options.Nodes.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the nodes that have pools: %w", err)
	}
	d.pools.served(names)
	return names, nil
}

// SharedPools returns the pools whose id was found in more than one place.
func (d *Driver) SharedPools(ctx context.Context) []provisioner.SharedPool {
	var shared []provisioner.SharedPool
	for _, id := range d.pools.doubtful() {
		if places := d.recheck(ctx, id); len(places) > 1 {
			shared = append(shared, provisioner.SharedPool{ID: id, Places: places})
		}
	}
	return shared
}

// Moved reports whether volume names a node that does not have its pool, while
// another one has.
func (d *Driver) Moved(volume *corev1.PersistentVolume) (from, to string, moved bool) {
	about := volume.Annotations
	from, id := about[AnnNode], about[AnnPoolID]
	if about[request.AnnDriver] != Name || from == "" || id == "" {
		return "", "", false
	}
	nodes := d.pools.nodesWith(id)
	if len(nodes) != 1 || nodes[0] == from || !d.rulesOut(context.Background(), from, id) {
		return "", "", false
	}
	return from, nodes[0], true
}

// Identify returns the annotation that volume lacks to be known by its pool: by its
// name and path, when the node that it names is where record is from, or does not
// have it.
func (d *Driver) Identify(ctx context.Context, volume *corev1.PersistentVolume, record provisioner.Record) map[string]string {
	about := volume.Annotations
	if about[request.AnnDriver] != Name || about[AnnPoolID] != "" || record.Pool == "" ||
		record.Volume != volume.Name || record.Path != sourcePath(volume) || len(d.recheck(ctx, record.Pool)) > 1 {
		return nil
	}
	node, _, _ := strings.Cut(record.Place, "/")
	if home := about[AnnNode]; home != node && (!d.rulesOut(ctx, home, record.Pool) || !d.pools.answers(home) && !d.isGone(ctx, home)) {
		return nil
	}
	return map[string]string{AnnPoolID: record.Pool}
}
