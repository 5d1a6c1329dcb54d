package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// unsettled holds the volumes of which it is not known whether a change of the
// marker or the directory was carried out, or still will be. They keep their
// paths, until they are created, deleted or discarded again, or another volume
// wants the path.
type unsettled struct {
	mu      sync.Mutex
	volumes map[string]doubt
}

// doubt is about a volume as it was about to be, or to go. pool is who made the
// change: what it does next waits until the server is done with that.
type doubt struct {
	marker Marker
	pool   *Pool
}

func (u *unsettled) add(p *Pool, m Marker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.volumes == nil {
		u.volumes = map[string]doubt{}
	}
	u.volumes[m.Volume] = doubt{m, p}
}

// remove is for when all that p has asked for is over.
func (u *unsettled) remove(p *Pool, volume string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.volumes[volume].pool == p {
		delete(u.volumes, volume)
	}
}

func (u *unsettled) get(volume string) (doubt, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	d, ok := u.volumes[volume]
	return d, ok
}

// addUnknown notes m if err says that the outcome of a change is unknown.
func (p *Pool) addUnknown(s *session, m Marker, err error) {
	if outcomeUnknown(err) {
		s.index.unsettled.add(p, m)
	}
}

// reserve gives the path of spec to its volume. When another volume has it that
// may not be there, it looks for that first.
func (p *Pool) reserve(ctx context.Context, s *session, spec Spec) (err error) {
	for range vanishingRetries {
		err = s.index.reserve(spec.Path, spec.Volume)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		other, at := s.index.overlapping(spec.Path, spec.Volume)
		d, ok := s.index.unsettled.get(other)
		if !ok && other != "" {
			return err
		}
		if ok {
			if cause := d.pool.settleOther(ctx, other); cause != nil {
				// Not what is lasting about err: this may be over in a moment.
				return fmt.Errorf("create volume %s: another volume may be at %s, which is not known yet: %w", spec.Volume, shown(spec.Path), cause)
			}
			if s.index.ownerOf(at) == other {
				return err
			}
		}
	}
	return err
}

// busyVolume is how long a lock may be held before the volume is taken to be in
// work.
const busyVolume = 50 * time.Millisecond

// within calls f with the lock of volume, which somebody else works with, held.
func (p *Pool) within(ctx context.Context, volume string, f func(*session) error) error {
	patient, cancel := context.WithTimeout(ctx, busyVolume)
	defer cancel()
	unlock, err := p.volumes.lock(patient, volume)
	if err != nil && ctx.Err() == nil {
		return errors.New("it is being worked on")
	}
	if err != nil {
		return err
	}
	defer unlock()
	s, err := p.enter(ctx, false)
	if err != nil {
		return err
	}
	defer s.close()
	return f(s)
}

// settleOther forgets volume if it has no marker. When it has one, that stays in
// doubt.
func (p *Pool) settleOther(ctx context.Context, volume string) error {
	return p.within(ctx, volume, func(s *session) error {
		_, err := s.volumes.Lstat(ctx, volume+markerSuffix)
		if notExist(err) {
			return p.settleMissing(ctx, s, volume)
		}
		return err
	})
}

// settleMissing is called when volume was found to have no marker. One that may
// be written yet is awaited by the removal, which is asked for all the same.
func (p *Pool) settleMissing(ctx context.Context, s *session, volume string) error {
	d, ok := s.index.unsettled.get(volume)
	switch {
	case !ok:
		return nil
	case d.pool != p:
		return d.pool.settleOther(ctx, volume)
	default:
		return p.forget(ctx, s, d.marker)
	}
}

// settleFound is called when volume was found to have the marker m, before the
// directory is made, and returns the marker that it has then. That is written
// anew, after a removal that may still be carried out; and as unfinished, so that
// the directory is not believed to be there because it is now.
func (p *Pool) settleFound(ctx context.Context, s *session, m Marker) (Marker, error) {
	d, ok := s.index.unsettled.get(m.Volume)
	if !ok {
		return m, nil
	}
	m.Unfinished = !m.Adopted
	var err error
	if d.pool == p {
		err = writeMarker(ctx, s.volumes, m)
	} else {
		err = d.pool.within(ctx, m.Volume, func(s *session) error { return writeMarker(ctx, s.volumes, m) })
	}
	if err != nil {
		return m, err
	}
	s.index.unsettled.remove(d.pool, m.Volume)
	return m, nil
}
