package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

const (
	// placeCalls is how many callers a directory may hold, should its disk hang:
	// a system call on a dead disk can't be called off.
	placeCalls = 16
	// patience is how long to wait for one of them to leave, and for a disk to
	// answer a question.
	patience = 5 * time.Second
	// askAgain is how long a directory that could not be read is left alone
	// while another will do.
	askAgain = 30 * time.Second
	// refusalCounts is how long a directory that was refused has no room. After
	// that it is tried again: an administrator may have released it.
	refusalCounts = 5 * time.Minute
)

// pool is what a class chooses by name.
type pool struct {
	name   string
	places []*place
}

// place is one directory of a pool.
type place struct {
	*directory.Pool
	pool string
	base string
	// several says that the pool has other directories, so that an error has to
	// name this one.
	several bool
	calls   chan struct{}
	// pending holds the sizes of volumes that are about to be made here, and,
	// under names that no volume has, by how much volumes are about to grow. It
	// belongs to the ledger.
	pending map[string]directory.Promise
	// device is the filesystem that was seen here last, 0 for none.
	device atomic.Uint64
	// asked is when a question was asked in vain last, in Unix nanoseconds.
	asked atomic.Int64
	// silent is when its disk was last found not to answer, in Unix nanoseconds;
	// 0 when it has answered since.
	silent atomic.Int64
	// refused is when the directory was empty and must not become a pool, in Unix
	// nanoseconds: the disk that should be mounted on it is not.
	refused atomic.Int64
}

func newPlace(o Options, pool, base string) (*place, error) {
	p := &place{
		pool: pool, base: base, several: len(o.Pools[pool]) > 1,
		calls: make(chan struct{}, placeCalls), pending: map[string]directory.Promise{},
	}
	local, err := directory.NewLocal(base, directory.LocalOptions{RequireMount: o.RequireMount})
	if err != nil {
		return nil, err
	}
	var filesystem directory.Filesystem = local
	if o.Filesystem != nil {
		filesystem = o.Filesystem(local)
	}
	p.Pool = directory.NewPool(filesystem, directory.Options{
		Name: pool, Driver: wire.PluginName, RefuseInitialise: p.refuseInitialise, CloseBase: true, Quota: o.Quota,
		Log: o.Log.WithValues("directory", base),
	})
	return p, nil
}

// refuseInitialise keeps an empty directory from becoming a pool, unless the
// caller, who knows the cluster, has said that it may.
func (p *place) refuseInitialise(ctx context.Context) error {
	allowed, refusal := wire.NewPool(ctx, p.base)
	switch {
	case allowed:
		return nil
	case refusal != "":
		p.refused.Store(time.Now().UnixNano())
		return refusedError(refusal)
	}
	return &wire.NewPoolError{Directory: p.base}
}

// refusedError says why a directory must not become a pool.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// within calls f while it holds one of the directory's calls. Errors name the
// pool.
func (p *place) within(ctx context.Context, f func() error) error {
	leave, err := p.enter(ctx)
	if err != nil {
		return p.named(err)
	}
	defer leave()
	return p.named(f())
}

// named adds to err where it happened.
func (p *place) named(err error) error {
	switch {
	case err == nil:
		return nil
	case p.several && !strings.Contains(err.Error(), p.base):
		return fmt.Errorf("pool %s: directory %s: %w", p.pool, p.base, err)
	}
	return fmt.Errorf("pool %s: %w", p.pool, err)
}

// enter waits until there are fewer callers.
func (p *place) enter(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case p.calls <- struct{}{}:
		return func() { <-p.calls }, nil
	case <-timer.C:
		p.silent.Store(time.Now().UnixNano())
		return nil, &silentError{fmt.Sprintf("%d operations have been under way for %s: does the disk of %s answer?", placeCalls, patience, p.base)}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// silentError says that a disk does not answer.
type silentError struct{ text string }

func (e *silentError) Error() string { return e.text }

// ask calls f, which only looks, and does not wait longer for its disk than
// patience: a directory whose disk hangs must not hold up the others.
func ask[T any](ctx context.Context, p *place, f func(context.Context) (T, error)) (T, error) {
	return askFor(ctx, p, patience, f)
}

func askFor[T any](ctx context.Context, p *place, patience time.Duration, f func(context.Context) (T, error)) (T, error) {
	var none T
	leave, err := p.enter(ctx)
	if err != nil {
		return none, p.named(err)
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		defer leave()
		value, err := f(ctx)
		if ctx.Err() == nil {
			p.silent.Store(0)
		}
		done <- answer{value, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a := <-done:
		return a.value, p.named(a.err)
	case <-timer.C:
		p.silent.Store(time.Now().UnixNano())
		return none, p.named(&silentError{fmt.Sprintf("the disk of %s has not answered for %s", p.base, patience)})
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// look returns the size of the filesystem below the directory, after taking it
// into use if it is a pool. That it is none yet is no error.
func (p *place) look(ctx context.Context) (directory.Space, error) {
	space, err := ask(ctx, p, func(ctx context.Context) (directory.Space, error) {
		if err := p.Open(ctx); err != nil && !errors.Is(err, directory.ErrNotInitialised) {
			return directory.Space{}, err
		} else if err == nil {
			p.refused.Store(0)
		}
		return p.Space(ctx)
	})
	if err != nil {
		p.asked.Store(time.Now().UnixNano())
		return directory.Space{}, err
	}
	p.device.Store(space.Device)
	return space, nil
}

// spared reports whether the disk is not to be waited for, as it did not answer
// just now. Of those who ask when that is long ago, one is to try it.
func (p *place) spared() bool {
	silent := p.silent.Load()
	if silent == 0 {
		return false
	}
	now := time.Now()
	return now.Sub(time.Unix(0, silent)) < askAgain || !p.silent.CompareAndSwap(silent, now.UnixNano())
}

// sparedError says why the directory was not looked at.
func (p *place) sparedError() error {
	return p.named(&silentError{fmt.Sprintf("the disk of %s did not answer when it was asked last", p.base)})
}

// awake splits places into those to be asked, and those to be spared. When there
// would be none to ask, none is spared.
func awake(places []*place) (asked, spared []*place) {
	for _, p := range places {
		if len(places) > 1 && p.spared() {
			spared = append(spared, p)
		} else {
			asked = append(asked, p)
		}
	}
	if len(asked) == 0 {
		return spared, nil
	}
	return asked, spared
}

// refusedLately reports whether the directory is not to be counted on.
func (p *place) refusedLately() bool {
	return time.Since(time.Unix(0, p.refused.Load())) < refusalCounts
}

// unknown reports whether nothing is known of the directory and it is worth
// asking.
func (p *place) unknown() bool {
	last := time.Unix(0, max(p.asked.Load(), p.silent.Load()))
	return p.device.Load() == 0 && time.Since(last) > askAgain
}
