package directory

import (
	"context"
	"fmt"
	"maps"
	"slices"
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

// ID returns the id in pool.json of the pool that was taken into use, "" before
// that. Open tells whether its base is still that pool.
func (p *Pool) ID() string {
	if state := p.opened.Load(); state != nil {
		return state.identity.ID
	}
	return ""
}

// Promise is what a volume that is about to be made, or to grow, will have.
type Promise struct {
	Bytes int64
	// Enforced says that the filesystem will hold the volume to its size.
	Enforced bool
}

// Promised returns the sum of the sizes that the volumes of the pool were made
// with, or have grown to, by their markers. Those in pending, volumes that are
// about to be made and their sizes, count too, none of them twice. It looks at no
// disk, so a pool that is not open yet has promised nothing but what is pending.
func (p *Pool) Promised(pending map[string]Promise) int64 {
	return p.knownIndex().promisedWith(pending)
}

// Enforced returns the part of Promised that is enforced, and how much of it has
// been written already, as Written has found it. A volume that Written was not
// asked for is new and has written nothing.
func (p *Pool) Enforced(written map[uint32]int64, pending map[string]Promise) (promised, used int64) {
	return p.knownIndex().enforcedWith(written, pending)
}

// Projects returns the project ids of the volumes whose sizes are enforced.
func (p *Pool) Projects() []uint32 { return p.knownIndex().projectIDs() }

func (p *Pool) knownIndex() *index {
	if state := p.opened.Load(); state != nil {
		return state.index
	}
	return newIndex()
}

// Unmeasured stands for what has been written under a project id that has no
// limit any more.
const Unmeasured = -1

// Written returns how much has been written under each of projects, which may be
// those of other pools on the filesystem, or Unmeasured. It asks the filesystem
// once for each, and looks at no file. The pool need not be initialised.
func (p *Pool) Written(ctx context.Context, projects []uint32) (map[uint32]int64, error) {
	if len(projects) == 0 {
		return nil, nil
	}
	root, err := p.fs.Root(ctx)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	written := make(map[uint32]int64, len(projects))
	for _, id := range projects {
		usage, err := p.writtenUnder(ctx, root, id)
		if _, unsupported := quotaUnsupported(err); unsupported || err == nil && usage.LimitBytes == 0 {
			written[id] = Unmeasured
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read how much project %d holds: %w", id, err)
		}
		written[id] = usage.UsedBytes
	}
	return written, nil
}

func (p *Pool) writtenUnder(ctx context.Context, root Dir, id uint32) (QuotaUsage, error) {
	if p.options.Quota == nil {
		return QuotaUsage{}, errNoQuota
	}
	return p.options.Quota.Usage(ctx, root, id)
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
	m, err := s.readMarker(ctx, volume)
	if err != nil {
		return err
	}
	dir, err := openPath(ctx, s.root, m.Path)
	if err != nil {
		return fmt.Errorf("the directory of volume %s: %w", volume, kindError(err))
	}
	return dir.Close()
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

// promise notes what the volume of m is promised.
func (x *index) promise(m Marker) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forgetLocked(m.Volume)
	if m.SizeBytes != 0 {
		x.promised += m.SizeBytes
		x.sizes[m.Volume] = m.SizeBytes
	}
	if m.enforced() {
		x.projects[m.Volume] = m.Project
	}
}

// forgetLocked takes back what volume was promised.
func (x *index) forgetLocked(volume string) {
	x.promised -= x.sizes[volume]
	delete(x.sizes, volume)
	delete(x.projects, volume)
}

// promisedWith returns the sum of all sizes, and of those in pending that are not
// among them.
func (x *index) promisedWith(pending map[string]Promise) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	sum := x.promised
	for volume, p := range pending {
		if _, known := x.sizes[volume]; !known {
			sum += p.Bytes
		}
	}
	return sum
}

// enforcedWith returns the sum of the sizes that are enforced, with those in
// pending that will be, and how much of it is written.
func (x *index) enforcedWith(written map[uint32]int64, pending map[string]Promise) (promised, used int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for volume, id := range x.projects {
		if w := written[id]; w != Unmeasured {
			promised += x.sizes[volume]
			used += min(w, x.sizes[volume])
		}
	}
	for volume, p := range pending {
		if _, known := x.projects[volume]; p.Enforced && !known {
			promised += p.Bytes
		}
	}
	return promised, used
}

func (x *index) projectIDs() []uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Collect(maps.Values(x.projects))
}
