package directory

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"
)

// unsettled holds the markers of volumes of which it is not known whether they
// were written, or removed. These keep their paths, until they are created or
// deleted again, or another volume wants the path.
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

func (u *unsettled) all() map[string]Marker {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.markers)
}

// reserve gives the path of spec to its volume. When another volume has it that
// may have no marker, it looks for that first.
func (p *Pool) reserve(ctx context.Context, s *session, spec Spec) error {
	err := s.index.reserve(spec.Path, spec.Volume)
	if !errors.Is(err, ErrConflict) {
		return err
	}
	settled := false
	for volume, m := range p.unsettled.all() {
		if volume != spec.Volume && p.settleOther(ctx, s, m) == nil {
			settled = true
		}
	}
	if !settled {
		return err
	}
	return s.index.reserve(spec.Path, spec.Volume)
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

// settleMarker finds out whether m was written, and forgets it when it was not.
// When it can't be found out, or a marker that may be written yet can't be kept
// away, the volume is unsettled.
func (p *Pool) settleMarker(ctx context.Context, s *session, m Marker) error {
	_, err := s.volumes.Lstat(ctx, m.Volume+markerSuffix)
	if notExist(err) {
		err = p.forget(ctx, s, m)
	}
	if err != nil {
		p.unsettled.add(m)
		return err
	}
	p.unsettled.remove(m.Volume)
	return nil
}
