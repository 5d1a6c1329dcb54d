package node

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// GetCapacity says how much room a pool has, or all of them when the parameters
// name none. A directory that can't be used has none.
func (s *Server) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	c, err := readParameters(req.GetParameters())
	if err != nil {
		return nil, answer(err)
	}
	if all := req.GetVolumeCapabilities(); len(all) > 0 && !canBe(all) {
		return s.capacity(nil), nil
	}
	places := s.ledger.places
	if _, named := req.GetParameters()[wire.ParamPool]; named {
		p, ok := s.pools[c.pool]
		if !ok {
			return s.capacity(nil), nil
		}
		places = p.places
		s.acquaint(ctx, p)
	}
	candidates, _ := surveyAwake(ctx, places)
	candidates, _ = s.measure(ctx, candidates)
	if ctx.Err() != nil {
		return nil, answer(ctx.Err())
	}
	if c.spec.Quota == directory.QuotaRequired {
		candidates = slices.DeleteFunc(candidates, func(c candidate) bool { return !c.limiting })
	}
	s.ledger.rooms(s.options.Limits, candidates)
	if c.spec.Adopt {
		// Which directory is not known here: it may be all that the disk holds, and for
		// that there is room whatever was promised.
		for i := range candidates {
			candidates[i].room = size(candidates[i].space.Total)
		}
	}
	return s.capacity(candidates), nil
}

// capacity adds up the room of candidates, that of each filesystem once.
func (s *Server) capacity(candidates []candidate) *csi.GetCapacityResponse {
	var available, largest int64
	counted := map[uint64]bool{}
	for _, c := range candidates {
		if c.refusedLately() || counted[c.space.Device] {
			continue
		}
		counted[c.space.Device] = true
		available += c.room
		if s.options.Limits.Overcommit == 0 && c.room > 0 {
			largest = max(largest, s.options.Limits.most(c.space)) // sizes do not count
		}
		largest = max(largest, c.room)
	}
	return &csi.GetCapacityResponse{AvailableCapacity: available, MaximumVolumeSize: wrapperspb.Int64(largest)}
}
