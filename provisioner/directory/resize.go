package directory

import (
	"context"
	"fmt"
)

// Resize makes size bytes the limit of volume and records them in its marker,
// which says whether they are enforced. It never makes the number smaller. The
// marker must agree with expect, as for Delete.
func (p *Pool) Resize(ctx context.Context, volume string, expect Expectation, size int64) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer leave()
	m, err := p.toResize(ctx, s, volume, expect)
	if err != nil {
		return err
	}
	before := m
	if size > m.SizeBytes {
		// Before the limit: should that be raised and nobody hear of it, the volume
		// counts as so large all the same, and a repeated call finds it so.
		m.SizeBytes = size
		if err := writeMarker(ctx, s.volumes, m); err != nil {
			return err
		}
	}
	s.index.promise(m) // perhaps written by a call whose outcome was unknown
	if !s.limits(m) {
		return nil
	}
	if err := m.tolerate(s.raiseAt(ctx, &m)); err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
	if m == before { // repeated, perhaps on a disk that is full by now
		return s.volumes.Sync(ctx)
	}
	// After the limit once more: that makes the limit durable as well.
	if err := writeMarker(ctx, s.volumes, m); err != nil {
		return err
	}
	s.index.promise(m)
	return nil
}

// CheckResize fails if Resize surely would, and before that has changed anything: when
// the size must be enforced, and can't be.
func (p *Pool) CheckResize(ctx context.Context, volume string, expect Expectation) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer leave()
	m, err := p.toResize(ctx, s, volume, expect)
	if err != nil || !s.limits(m) {
		return err
	}
	if err := m.tolerate(s.checkLimit(ctx, m)); err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
	return nil
}

// toResize returns the marker of volume, which agrees with expect.
func (p *Pool) toResize(ctx context.Context, s *session, volume string, expect Expectation) (Marker, error) {
	m, err := s.readMarker(ctx, volume)
	if err != nil {
		return Marker{}, fmt.Errorf("resize volume %s: %w", volume, err)
	}
	if m.ClaimUID != expect.ClaimUID || m.Path != expect.Path {
		return Marker{}, fmt.Errorf("resize volume %s: its marker names another claim or path: %w", volume, ErrNotOwned)
	}
	if err := p.checkOwner(s, m); err != nil {
		return Marker{}, fmt.Errorf("resize volume %s: %w", volume, err)
	}
	return m, nil
}
