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

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/provisioner"
)

// readersAtOnce bounds how many markers are read at the same time, which hides
// the round trips of a network filesystem.
const readersAtOnce = 16

// load builds the index from the markers.
func (p *Pool) load(ctx context.Context, admin Dir, known identity) (*index, error) {
	volumes, err := admin.Open(ctx, volumesName)
	if err != nil {
		return nil, fmt.Errorf("open the markers: %w", err)
	}
	defer volumes.Close()

	var (
		mu      sync.Mutex
		markers []Marker
		idx     = newIndex()
	)
	group, readCtx := errgroup.WithContext(ctx)
	group.SetLimit(readersAtOnce)
	var listing error
	for e, err := range volumes.ReadDir(readCtx) {
		if err != nil {
			listing = fmt.Errorf("list the markers: %w", err)
			break
		}
		if strings.HasPrefix(e.Name, TempPrefix) {
			// Nobody else writes here: the pool is locked and not open yet.
			if err := volumes.Remove(ctx, e.Name); err != nil {
				p.log.Error(err, "Could not remove what a crash left behind", "pool", p.options.Name)
			}
			continue
		}
		volume, ok := volumeOf(e.Name)
		if !ok {
			continue
		}
		group.Go(func() error {
			m, err := readMarker(readCtx, volumes, volume)
			if isDamage(err) {
				idx.setDamaged(volume, err)
				p.log.Error(err, "Found a damaged marker, repair or remove it", "volume", volume, "pool", p.options.Name)
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			markers = append(markers, m)
			return nil
		})
	}
	if err := errors.Join(group.Wait(), listing); err != nil {
		return nil, err
	}
	// Of two markers for one directory, which only a careless hand can make,
	// the older one is believed.
	slices.SortFunc(markers, func(a, b Marker) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Volume, b.Volume))
	})
	for _, m := range markers {
		p.index(idx, m)
		if m.Project != 0 && p.options.Quota != nil {
			p.options.Quota.Hold(QuotaOwner{Pool: known.ID, Volume: m.Volume}, m.Project)
		}
	}
	return idx, nil
}

// index adds a marker that was found to idx.
func (p *Pool) index(idx *index, m Marker) {
	if err := idx.reserve(m.Path, m.Volume); err != nil {
		err = fmt.Errorf("%w: volume %s: %w", ErrDamagedMarker, m.Volume, err)
		idx.setDamaged(m.Volume, err)
		p.log.Error(err, "Found two markers for one directory, remove the wrong one", "volume", m.Volume, "pool", p.options.Name)
		return
	}
	idx.setDamaged(m.Volume, nil)
	idx.setMade(m)
	idx.promise(m)
}

// recheckDamaged looks whether an administrator has repaired or removed the
// markers that were damaged, and returns how many still are.
func (p *Pool) recheckDamaged(ctx context.Context, s *session) (int, error) {
	for volume := range s.index.damagedVolumes() {
		m, err := readMarker(ctx, s.volumes, volume)
		switch {
		case err == nil:
			p.index(s.index, m)
		case notExist(err):
			s.index.setDamaged(volume, nil)
		case !isDamage(err):
			return 0, err
		}
	}
	return len(s.index.damagedVolumes()), nil
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
		names, err := s.volumeNames(ctx, after)
		if err != nil {
			yield(Marker{}, err)
			return
		}
		var damaged []error
		for _, volume := range names {
			m, err := readMarker(ctx, s.volumes, volume)
			switch {
			case notExist(err): // deleted meanwhile
			case isDamage(err):
				damaged = append(damaged, err)
			case err != nil:
				yield(Marker{}, err)
				return
			case !yield(m, nil):
				return
			}
		}
		if len(damaged) > 0 {
			yield(Marker{}, errors.Join(damaged...))
		}
	}
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

// isDamage reports whether err says that a marker is there and no good, rather
// than that it could not be read for now.
func isDamage(err error) bool {
	return errors.Is(err, ErrDamagedMarker) || errors.Is(err, ErrTooLarge) || notRegular(err)
}
