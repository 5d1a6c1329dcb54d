package directory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/provisioner"
)

// readersAtOnce bounds how many markers are read at the same time, which hides
// the round trips of a network filesystem.
const readersAtOnce = 16

// load builds the index from the markers.
func (p *Pool) load(ctx context.Context, admin Dir, known identity) (*index, error) {
	volumes, err := openVolumes(ctx, admin)
	if err != nil {
		return nil, err
	}
	defer volumes.Close()

	all := readMarkers{pool: p, volumes: volumes, index: newIndex(), unread: map[string]error{}, took: map[string]time.Duration{}, missing: map[string]error{}}
	if err := all.read(ctx); err != nil {
		return nil, err
	}
	if len(all.unread) > 0 {
		err := stillAnswers(ctx, admin, volumes)
		if err == nil {
			err = blame(all.good, all.unread)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := all.keepListed(ctx); err != nil {
		return nil, err
	}
	for volume, err := range all.unread {
		_ = p.noteDamage(all.index, volume, err, all.took[volume])
	}
	// Of two markers for one directory, which only a careless hand can make,
	// the older one is believed.
	slices.SortFunc(all.markers, func(a, b Marker) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Volume, b.Volume))
	})
	for _, m := range all.markers {
		p.index(all.index, known.ID, m)
	}
	return all.index, nil
}

// readMarkers reads all markers of a pool that is not open yet.
type readMarkers struct {
	pool    *Pool
	volumes Dir
	index   *index

	mu      sync.Mutex
	markers []Marker
	// good counts those that could be read, whatever they say.
	good int
	// unread says why others could not, and took how long that has taken.
	unread map[string]error
	took   map[string]time.Duration
	// missing are listed, and not there.
	missing map[string]error
}

func (r *readMarkers) read(ctx context.Context) error {
	group, readCtx := errgroup.WithContext(ctx)
	group.SetLimit(readersAtOnce)
	var listing error
	for e, err := range r.volumes.ReadDir(readCtx) {
		if err != nil {
			listing = fmt.Errorf("list the markers: %w", err)
			break
		}
		if strings.HasPrefix(e.Name, TempPrefix) {
			// Nobody else writes here: the pool is locked and not open yet.
			if err := r.volumes.Remove(ctx, e.Name); err != nil {
				r.pool.log.Error(err, "Could not remove what a crash left behind", "pool", r.pool.options.Name)
			}
			continue
		}
		if volume, ok := volumeOf(e.Name); ok {
			group.Go(func() error { return r.readOne(readCtx, volume) })
		}
	}
	return errors.Join(group.Wait(), listing)
}

func (r *readMarkers) readOne(ctx context.Context, volume string) error {
	start := time.Now()
	m, err := readMarker(ctx, r.volumes, volume)
	took := time.Since(start)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.good++
		r.markers = append(r.markers, m)
	case isDamage(err):
		r.good++
		_ = r.pool.noteDamage(r.index, volume, err, took)
	case unreadable(err):
		r.unread[volume], r.took[volume] = err, took
	case notExist(err):
		r.missing[volume] = err
	default:
		return err
	}
	return nil
}

// keepListed counts those of the missing markers as unread that are still listed:
// the directory's own tables don't agree. The others were deleted meanwhile.
func (r *readMarkers) keepListed(ctx context.Context) error {
	if len(r.missing) == 0 {
		return nil
	}
	for e, err := range r.volumes.ReadDir(ctx) {
		if err != nil {
			return fmt.Errorf("list the markers: %w", err)
		}
		if volume, ok := volumeOf(e.Name); ok && r.missing[volume] != nil {
			r.unread[volume] = r.missing[volume]
		}
	}
	return nil
}

// index adds a marker that was found to idx, and keeps its project id from other
// volumes. id is that of the pool.
func (p *Pool) index(idx *index, id string, m Marker) {
	if m.Project != 0 && p.options.Quota != nil {
		p.options.Quota.Hold(QuotaOwner{Pool: id, Volume: m.Volume}, m.Project)
	}
	if idx.reserve(m.Path, m.Volume) != nil {
		other, at := idx.overlapping(m.Path, m.Volume)
		err := twoMarkers(m, other, at)
		if idx.setDamaged(m.Volume, damage{err: err, readable: true}) {
			p.log.Error(err, "Found two markers for one directory, remove the wrong one: the right one is that of the volume whose PersistentVolume exists",
				"volume", m.Volume, "path", m.Path, "otherVolume", other, "otherPath", at, "pool", p.options.Name)
		}
		return
	}
	idx.mended(m.Volume)
	idx.setMade(m)
	idx.promise(m)
}

// twoMarkers says that m gives to its volume what the marker of another gives to that
// one.
func twoMarkers(m Marker, other, at string) error {
	return fmt.Errorf("%w: %s gives %s to volume %s, and %s gives %s to volume %s", ErrDamagedMarker,
		markerFile(m.Volume), shown(m.Path), m.Volume, markerFile(other), shown(at), other)
}

// Volumes yields what the markers say, in the order of the volumes' names.
// Damaged ones come last, as one error. A pool that was never used has no
// volumes.
func (p *Pool) Volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return func(yield func(provisioner.Record, error) bool) {
		for m, err := range p.Markers(ctx, "") {
			if err != nil {
				yield(provisioner.Record{}, err)
				return
			}
			if !yield(m.Record(), nil) {
				return
			}
		}
	}
}

// Markers yields the markers of the volumes whose names come after the one given,
// in that order, and reads no more of them than are asked for. Damaged ones come
// last, as one error. A pool that was never used has none.
func (p *Pool) Markers(ctx context.Context, after string) iter.Seq2[Marker, error] {
	return func(yield func(Marker, error) bool) {
		s, err := p.enter(ctx, false)
		if errors.Is(err, ErrNotInitialised) {
			return
		}
		if err != nil {
			yield(Marker{}, err)
			return
		}
		defer s.close()
		if _, err := p.recheckDamaged(ctx, s); err != nil {
			yield(Marker{}, err)
			return
		}
		names, err := s.volumeNames(ctx, after)
		if err != nil {
			yield(Marker{}, err)
			return
		}
		for _, volume := range names {
			m, err := p.list(ctx, s, volume)
			switch {
			case notExist(err), isDamage(err): // deleted meanwhile, or told at the end
			case err != nil:
				yield(Marker{}, err)
				return
			case !yield(m, nil):
				return
			}
		}
		if damaged := s.index.unreadableMarkers(); len(damaged) > 0 {
			yield(Marker{}, errors.Join(damaged...))
		}
	}
}

// list reads the marker of a volume that is listed. One that was found damaged is
// not read again.
func (p *Pool) list(ctx context.Context, s *session, volume string) (Marker, error) {
	if err := s.index.unreadableMarker(volume); err != nil {
		return Marker{}, err
	}
	start := time.Now()
	m, err := readMarker(ctx, s.volumes, volume)
	if unreadable(err) {
		if err := stillAnswers(ctx, s.admin, s.volumes); err != nil {
			return Marker{}, err
		}
	} else if !isDamage(err) {
		return m, err
	}
	return Marker{}, p.noteDamage(s.index, volume, err, time.Since(start))
}

// volumeNames returns, sorted, the names of the volumes that have a marker and
// come after the one given.
func (s *session) volumeNames(ctx context.Context, after string) ([]string, error) {
	var names []string
	for e, err := range s.volumes.ReadDir(ctx) {
		if err != nil {
			return nil, fmt.Errorf("list the markers: %w", err)
		}
		if volume, ok := volumeOf(e.Name); ok && volume > after {
			names = append(names, volume)
		}
	}
	slices.Sort(names)
	return names, nil
}

// volumeOf returns which volume's marker a file of .berth/volumes is.
func volumeOf(file string) (string, bool) {
	volume, ok := strings.CutSuffix(file, markerSuffix)
	return volume, ok && checkVolume(volume) == nil
}
