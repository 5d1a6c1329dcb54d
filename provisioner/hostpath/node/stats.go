package node

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/provisioner/directory"
)

// DirectoryStats are what is known of one directory of a pool.
type DirectoryStats struct {
	Pool      string
	Directory string
	directory.Space
	directory.Stats
	// Reserve is how much has to stay free.
	Reserve int64
	// Promised is the sum of the sizes of the volumes in this directory.
	Promised int64
	// Room is how much more can be promised on its filesystem.
	Room int64
	// Opened says that the directory was taken into use. Before that, only its
	// Space and its Reserve are known.
	Opened bool
	// Err says why nothing else is known.
	Err error
}

// Stats looks at all directories, at once. It takes none into use: a replica that
// only waits to become the leader must not keep another from its pools.
func (s *Server) Stats(ctx context.Context) []DirectoryStats {
	all := make([]DirectoryStats, len(s.ledger.places))
	group := errgroup.Group{}
	for i, p := range s.ledger.places {
		group.Go(func() error {
			all[i] = s.statsOf(ctx, p)
			return nil
		})
	}
	_ = group.Wait()
	for i, p := range s.ledger.places {
		if all[i].Opened && all[i].Err == nil {
			known, err := s.measure(ctx, []candidate{{place: p, space: all[i].Space}})
			if all[i].Err = err; err != nil {
				continue
			}
			s.ledger.rooms(s.options.Limits, known)
			all[i].Room = known[0].room
		}
	}
	return all
}

func (s *Server) statsOf(ctx context.Context, p *place) DirectoryStats {
	d := DirectoryStats{Pool: p.pool, Directory: p.base}
	d.Opened = p.Opened()
	if d.Space, d.Err = ask(ctx, p, p.Space); d.Err != nil {
		return d
	}
	d.Reserve = s.options.Limits.Reserve.of(d.Total)
	if d.Opened {
		d.Stats, d.Err = ask(ctx, p, p.Stats)
		d.Promised = p.Promised(nil)
	}
	return d
}
