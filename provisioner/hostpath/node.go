package hostpath

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// node is the part of the driver that touches disks.
type node struct {
	name  string
	pools map[string]pool
}

type pool struct {
	*directory.Pool
	base string
	// places bounds how many creates and deletes are under way.
	places chan struct{}
}

const (
	// poolPlaces is how many callers a pool may hold, should its disk hang: a
	// system call on a dead disk can't be called off.
	poolPlaces = 16
	// patience is how long to wait for a place.
	patience = 5 * time.Second
)

// enter waits for a place in the pool.
func (p pool) enter(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case p.places <- struct{}{}:
		return func() { <-p.places }, nil
	case <-timer.C:
		return nil, fmt.Errorf("%d operations have been under way for %s: does the disk of %s answer?", poolPlaces, patience, p.base)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newNode(o Options) (*node, error) {
	if len(o.Pools) == 0 {
		return nil, errors.New("no pool is configured: give --pool name=/directory")
	}
	n := &node{name: o.NodeName, pools: map[string]pool{}}
	for _, name := range slices.Sorted(maps.Keys(o.Pools)) {
		base := o.Pools[name]
		if err := checkPool(name, base); err != nil {
			return nil, err
		}
		for other, p := range n.pools {
			if within(base, p.base) || within(p.base, base) {
				return nil, fmt.Errorf("pools %s and %s must not share a directory: %s, %s", other, name, p.base, base)
			}
		}
		local, err := directory.NewLocal(base, directory.LocalOptions{RequireMount: o.RequireMount})
		if err != nil {
			return nil, err
		}
		n.pools[name] = pool{base: base, places: make(chan struct{}, poolPlaces), Pool: directory.NewPool(local, directory.Options{
			Name:             name,
			Driver:           Name,
			RefuseInitialise: refuseInitialise(o, name),
			Log:              o.Log,
		})}
	}
	return n, nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool { return strings.HasPrefix(path+"/", dir+"/") }

// refuseInitialise keeps an empty directory from becoming a pool that has
// volumes already.
func refuseInitialise(o Options, pool string) func(context.Context) error {
	if o.PoolInUse == nil {
		return nil
	}
	return func(ctx context.Context) error {
		inUse, err := o.PoolInUse(ctx, pool)
		if err != nil {
			return fmt.Errorf("whether pool %s has volumes is unknown: %w", pool, err)
		}
		if inUse {
			return fmt.Errorf("but Kubernetes has volumes in pool %s on node %s: is its disk mounted?", pool, o.NodeName)
		}
		return nil
	}
}

func (n *node) pool(name string) (pool, error) {
	p, ok := n.pools[name]
	if !ok {
		return pool{}, fmt.Errorf("pool %q is not configured on node %s, it has %s: add --pool %s=<directory>",
			name, n.name, strings.Join(slices.Sorted(maps.Keys(n.pools)), ", "), name)
	}
	return p, nil
}

func (n *node) base(name string) (string, error) {
	p, err := n.pool(name)
	return p.base, err
}

// pathOf returns the path that an earlier create has settled on, if there was
// one.
func (n *node) pathOf(ctx context.Context, name, volume string) (path string, ok bool) {
	p, err := n.pool(name)
	if err != nil {
		return "", false
	}
	marker, err := p.Lookup(ctx, volume)
	return marker.Path, err == nil
}

func (n *node) create(ctx context.Context, name string, spec directory.Spec) (directory.Marker, error) {
	p, err := n.pool(name)
	if err != nil {
		return directory.Marker{}, err
	}
	leave, err := p.enter(ctx)
	if err != nil {
		return directory.Marker{}, inPool(name, err)
	}
	defer leave()
	marker, err := p.Create(ctx, spec)
	if err != nil {
		return directory.Marker{}, inPool(name, err)
	}
	return marker, nil
}

func (n *node) delete(ctx context.Context, name, volume string, expect directory.Expectation) error {
	return n.within(ctx, name, func(p pool) error { return p.Delete(ctx, volume, expect) })
}

func (n *node) resize(ctx context.Context, name, volume string, expect directory.Expectation, size int64) error {
	return n.within(ctx, name, func(p pool) error { return p.Resize(ctx, volume, expect, size) })
}

// within calls f from a place in the pool. Errors name the pool.
func (n *node) within(ctx context.Context, name string, f func(pool) error) error {
	p, err := n.pool(name)
	if err != nil {
		return err
	}
	leave, err := p.enter(ctx)
	if err != nil {
		return inPool(name, err)
	}
	defer leave()
	return inPool(name, f(p))
}

// discard looks for the volume in every pool, since its name does not say where
// it is. It fails when it is nowhere and a pool can't be asked.
func (n *node) discard(ctx context.Context, volume string) error {
	var failed []error
	for _, name := range slices.Sorted(maps.Keys(n.pools)) {
		p := n.pools[name]
		found, err := p.Has(ctx, volume)
		if found {
			return inPool(name, p.Discard(ctx, volume))
		}
		if err != nil {
			failed = append(failed, inPool(name, err))
		}
	}
	return errors.Join(failed...)
}

func (n *node) volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return func(yield func(provisioner.Record, error) bool) {
		var unread []error
		for _, name := range slices.Sorted(maps.Keys(n.pools)) {
			for record, err := range n.pools[name].Volumes(ctx) {
				if err != nil {
					unread = append(unread, inPool(name, err))
					break
				}
				if !yield(record, nil) {
					return
				}
			}
		}
		if len(unread) > 0 {
			yield(provisioner.Record{}, errors.Join(unread...))
		}
	}
}

func (n *node) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range n.pools {
		group.Go(func() error { return p.Run(ctx) })
	}
	return group.Wait()
}

func (n *node) stats(ctx context.Context, name string) (directory.Stats, error) {
	p, err := n.pool(name)
	if err != nil {
		return directory.Stats{}, err
	}
	stats, err := p.Stats(ctx)
	return stats, inPool(name, err)
}

func (n *node) space(ctx context.Context, name string) (directory.Space, error) {
	p, err := n.pool(name)
	if err != nil {
		return directory.Space{}, err
	}
	return p.Space(ctx)
}

func (n *node) close() error {
	var failed []error
	for name, p := range n.pools {
		failed = append(failed, inPool(name, p.Close()))
	}
	return errors.Join(failed...)
}

func inPool(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pool %s: %w", name, err)
}
