package directory

import (
	"context"
	"fmt"
)

// Open takes the pool into use, unless it is, and checks that its base is what
// it was. A base that was never used is left so: the error wraps
// ErrNotInitialised then.
func (p *Pool) Open(ctx context.Context) error {
	s, err := p.enter(ctx, false)
	if err != nil {
		return err
	}
	s.close()
	return nil
}

// Opened reports whether the pool was taken into use, which keeps other processes
// from it.
func (p *Pool) Opened() bool { return p.opened.Load() != nil }

// Promised returns the sum of the sizes that the volumes of the pool were made
// with, or have grown to, by their markers. Those in pending, volumes that are
// about to be made and their sizes, count too, none of them twice. It looks at no
// disk, so a pool that is not open yet has promised nothing but what is pending.
func (p *Pool) Promised(pending map[string]int64) int64 {
	if state := p.opened.Load(); state != nil {
		return state.index.promisedWith(pending)
	}
	return newIndex().promisedWith(pending)
}

// Knows reports whether the pool has a marker of volume, or is about to make one,
// without looking at the disk. A pool that is not open can't be sure.
func (p *Pool) Knows(volume string) (known, sure bool) {
	state := p.opened.Load()
	if state == nil {
		return false, false
	}
	return state.index.knows(volume), true
}

// Find returns the marker of volume, and whether it has one. An error means that
// the pool can't say.
func (p *Pool) Find(ctx context.Context, volume string) (m Marker, found bool, err error) {
	err = p.withMarker(ctx, volume, func(_ *session, marker Marker) error {
		m, found = marker, true
		return nil
	})
	return m, found, err
}

// Inspect looks whether the directory of a volume is what its marker says, for
// the volume's health: the error wraps fs.ErrNotExist when the directory is gone
// and ErrNotADirectory when something else stands in its place. The marker must
// be there.
func (p *Pool) Inspect(ctx context.Context, volume string) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer leave()
	m, err := readMarker(ctx, s.volumes, volume)
	if err != nil {
		return err
	}
	dir, err := openPath(ctx, s.root, m.Path)
	if err != nil {
		return fmt.Errorf("the directory of volume %s: %w", volume, kindError(err))
	}
	return dir.Close()
}

// HasDirectory reports whether there is a directory at path that belongs to no
// volume, and so could be adopted. The pool need not be initialised.
func (p *Pool) HasDirectory(ctx context.Context, path string) (bool, error) {
	if err := CheckPath(path); err != nil {
		return false, err
	}
	if state := p.opened.Load(); state != nil && state.index.overlaps(path) {
		return false, nil
	}
	root, err := p.fs.Root(ctx)
	if err != nil {
		return false, err
	}
	defer root.Close()
	dir, err := openPath(ctx, root, path)
	if notExist(err) || notDirectory(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, dir.Close()
}

// CanLimit returns nil when limits for volumes of the pool would be enforced, and
// a *QuotaUnsupportedError when not. The pool need not be initialised.
func (p *Pool) CanLimit(ctx context.Context) error {
	if p.options.Quota == nil {
		return errNoQuota
	}
	root, err := p.fs.Root(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	return p.options.Quota.Check(ctx, root)
}

// setSize notes what volume was promised; 0 forgets it.
func (x *index) setSize(volume string, size int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.setSizeLocked(volume, size)
}

func (x *index) setSizeLocked(volume string, size int64) {
	x.promised += size - x.sizes[volume]
	if size == 0 {
		delete(x.sizes, volume)
		return
	}
	x.sizes[volume] = size
}

// promisedWith returns the sum of all sizes, and of those in pending that are not
// among them.
func (x *index) promisedWith(pending map[string]int64) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	sum := x.promised
	for volume, size := range pending {
		if _, known := x.sizes[volume]; !known {
			sum += size
		}
	}
	return sum
}
