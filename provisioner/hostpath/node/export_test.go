package node

import (
	"context"
	"errors"
)

// PurgeTrash goes over the trash of all directories once. What can't be removed
// stays.
func (s *Server) PurgeTrash(ctx context.Context) error {
	for _, p := range s.ledger.places {
		if err := p.PurgeTrash(ctx); err != nil && ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	return nil
}
