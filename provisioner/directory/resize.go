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
	m, err := s.readMarker(ctx, volume)
	if err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
	if m.ClaimUID != expect.ClaimUID || m.Path != expect.Path {
		return fmt.Errorf("resize volume %s: its marker names another claim or path: %w", volume, ErrNotOwned)
	}
	if err := p.checkOwner(s, m); err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
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
	// After the limit once more: that makes the limit durable as well.
	if err := writeMarker(ctx, s.volumes, m); err != nil {
		return err
	}
	s.index.promise(m)
	return nil
}
