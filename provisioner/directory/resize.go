package directory

import (
	"context"
	"fmt"
)

// Resize records that volume has grown to size bytes. It never makes the number
// smaller. The marker must agree with expect, as for Delete.
func (p *Pool) Resize(ctx context.Context, volume string, expect Expectation, size int64) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer leave()
	m, err := readMarker(ctx, s.volumes, volume)
	if err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
	if m.ClaimUID != expect.ClaimUID || m.Path != expect.Path {
		return fmt.Errorf("resize volume %s: its marker names another claim or path: %w", volume, ErrNotOwned)
	}
	if err := p.checkOwner(s, m); err != nil {
		return fmt.Errorf("resize volume %s: %w", volume, err)
	}
	if m.SizeBytes >= size {
		return nil
	}
	m.SizeBytes = size
	return writeMarker(ctx, s.volumes, m)
}
