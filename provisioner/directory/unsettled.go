package directory

import (
	"context"
	"errors"
	"sync"
	"time"
)

// unsettled holds the markers of volumes of which it is not known whether a
// write, or the removal, of the marker was carried out, or still may be. These
// volumes keep their paths, until they are created, deleted or discarded again,
// or another volume wants the path.
type unsettled struct {
	mu      sync.Mutex
	markers map[string]Marker
}

func (u *unsettled) add(m Marker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.markers == nil {
		u.markers = map[string]Marker{}
	}
	u.markers[m.Volume] = m
}

func (u *unsettled) remove(volume string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.markers, volume)
}

func (u *unsettled) get(volume string) (Marker, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	m, ok := u.markers[volume]
	return m, ok
}

// reserve gives the path of spec to its volume. When another volume has it that
// may have no marker, it looks for that first.
func (p *Pool) reserve(ctx context.Context, s *session, spec Spec) error {
	for {
		err := s.index.reserve(spec.Path, spec.Volume)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		other, at := s.index.overlapping(spec.Path, spec.Volume)
		m, ok := p.unsettled.get(other)
		if !ok || p.settleOther(ctx, s, m) != nil || s.index.ownerOf(at) == other {
			return err
		}
	}
}

// busyVolume is how long a lock may be held before the volume is taken to be in
// work.
const busyVolume = 50 * time.Millisecond

// settleOther forgets the volume of m if it has no marker.
func (p *Pool) settleOther(ctx context.Context, s *session, m Marker) error {
	patient, cancel := context.WithTimeout(ctx, busyVolume)
	defer cancel()
	unlock, err := p.volumes.lock(patient, m.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	return p.settleMarker(ctx, s, m)
}

// settleMarker forgets the volume of m if it has no marker. What may still be
// carried out is awaited by the removal of the marker, which is asked for all
// the same.
func (p *Pool) settleMarker(ctx context.Context, s *session, m Marker) error {
	_, err := s.volumes.Lstat(ctx, m.Volume+markerSuffix)
	if !notExist(err) {
		return err
	}
	return p.settleMissing(ctx, s, m.Volume)
}

// settleMissing is called when volume was found to have no marker.
func (p *Pool) settleMissing(ctx context.Context, s *session, volume string) error {
	m, ok := p.unsettled.get(volume)
	if !ok {
		return nil
	}
	if s.index.ownerOf(m.Path) != volume {
		p.unsettled.remove(volume) // another index than the one that it was in
		return nil
	}
	return p.forget(ctx, s, m)
}

// settleFound is called when volume was found to have the marker m. A removal
// that may still be carried out is awaited by writing it anew.
func (p *Pool) settleFound(ctx context.Context, s *session, m Marker) error {
	if _, ok := p.unsettled.get(m.Volume); !ok {
		return nil
	}
	if err := writeMarker(ctx, s.volumes, m); err != nil {
		return err
	}
	p.unsettled.remove(m.Volume)
	return nil
}
