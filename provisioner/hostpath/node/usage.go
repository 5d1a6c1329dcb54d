package node

import (
	"context"
	"errors"
	"iter"

	"github.com/berth-storage/berth/provisioner/directory"
)

// VolumeUsage is how much a volume holds of what it may.
type VolumeUsage struct {
	Pool      string
	Directory string
	directory.VolumeUsage
}

// Usage yields how much each volume holds, of the directories that were taken into
// use. What can't be read comes last, as one error.
func (s *Server) Usage(ctx context.Context) iter.Seq2[VolumeUsage, error] {
	return func(yield func(VolumeUsage, error) bool) {
		var failed []error
		for _, p := range s.ledger.places {
			if !p.Opened() {
				continue
			}
			usages, err := p.usages(ctx)
			failed = append(failed, err)
			for _, u := range usages {
				if !yield(VolumeUsage{Pool: p.pool, Directory: p.base, VolumeUsage: u}, nil) {
					return
				}
			}
		}
		if err := errors.Join(failed...); err != nil {
			yield(VolumeUsage{}, err)
		}
	}
}

// usages reads how much the volumes of one directory hold, as far as it can.
func (p *place) usages(ctx context.Context) ([]directory.VolumeUsage, error) {
	type read struct {
		usages []directory.VolumeUsage
		failed []error
	}
	r, err := askFor(ctx, p, listPatience, func(ctx context.Context) (read, error) {
		var r read
		for u, err := range p.Usage(ctx) {
			if err != nil {
				r.failed = append(r.failed, err)
				continue
			}
			r.usages = append(r.usages, u)
		}
		return r, nil
	})
	return r.usages, errors.Join(err, p.named(errors.Join(r.failed...)))
}
