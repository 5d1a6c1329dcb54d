package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// leastGrowth is a block of the filesystem: less needs no room. A claim that gives up
// growing can't ask for what it has, but has to ask for a byte more.
const leastGrowth = 4096

// ControllerExpandVolume promises a volume more, and never takes any away.
func (s *Server) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id, err := readVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, answer(err)
	}
	if req.GetCapacityRange() == nil {
		return nil, answer(invalid("capacity_range", "", "say how large the volume is to be"))
	}
	if c := req.GetVolumeCapability(); c != nil {
		if err := checkCapabilities([]*csi.VolumeCapability{c}); err != nil {
			return nil, answer(err)
		}
	}
	wanted, limit, err := readRange(req.GetCapacityRange())
	if err != nil {
		return nil, answer(err)
	}
	end, err := s.begin(id.Volume)
	if err != nil {
		return nil, err
	}
	defer end()
	size, err := s.expand(ctx, id, wanted, limit)
	if err != nil {
		return nil, answer(err)
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size}, nil
}

func (s *Server) expand(ctx context.Context, id wire.VolumeID, wanted, limit int64) (int64, error) {
	v, err := s.existing(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("expand volume %s: %w", id.Volume, err)
	}
	switch {
	case limit > 0 && v.SizeBytes > limit:
		return 0, refuse(codes.OutOfRange, "volume %s has %s already, which is more than %s; volumes do not shrink", id.Volume, bytes(v.SizeBytes), bytes(limit))
	case v.SizeBytes >= wanted && v.Project == 0:
		return v.SizeBytes, nil
	case v.SizeBytes >= wanted: // whose limit an earlier call may not have raised
		return v.SizeBytes, s.resize(ctx, id, v, v.SizeBytes)
	}
	space, err := v.look(ctx)
	if err != nil {
		return 0, err
	}
	p := s.pools[v.pool]
	candidates := []candidate{{place: v.place, space: space}}
	if err := s.checkSize(p, wanted, candidates); err != nil {
		return 0, err
	}
	s.acquaint(ctx, p)
	if candidates, err = s.measure(ctx, candidates); err != nil {
		return 0, err
	}
	// A slash: no volume has such a name.
	growth := wish{name: "growth/" + id.Volume, size: wanted - v.SizeBytes, limited: v.Project != 0}
	if growth.size >= leastGrowth {
		if _, ok := s.ledger.take(s.options.Limits, candidates, growth); !ok {
			return 0, withCode(codes.ResourceExhausted, fmt.Errorf("expand volume %s: %w", id.Volume, s.noRoom(p, growth.size, candidates)))
		}
		defer s.ledger.give(v.place, growth.name)
	}
	expect := directory.Expectation{ClaimUID: v.ClaimUID, Path: v.Path}
	if err := v.within(ctx, func() error { return v.CheckResize(ctx, id.Volume, expect) }); err != nil {
		return 0, err
	}
	return wanted, s.resize(ctx, id, v, wanted)
}

func (s *Server) resize(ctx context.Context, id wire.VolumeID, v found, size int64) error {
	expect := directory.Expectation{ClaimUID: v.ClaimUID, Path: v.Path}
	return begun(v.within(ctx, func() error { return v.Resize(ctx, id.Volume, expect, size) }))
}

// begun is what a resize failed with, nil included. The volume may count as larger by
// then, so even a full disk must not look like a refusal, after which it counts as
// not having grown.
func begun(err error) error {
	if err == nil {
		return nil
	}
	switch codeOf(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.Aborted:
		return err // says that itself
	}
	return withCode(codes.Internal, err)
}

// existing returns the volume of an id, whose marker agrees with it, and with what
// the caller has attached. It fails with NotFound when there is none.
func (s *Server) existing(ctx context.Context, id wire.VolumeID) (found, error) {
	expected, hasExpectation := wire.ExpectationFrom(ctx)
	var at *place
	if hasExpectation {
		var err error
		if at, err = s.expectedPlace(id, expected); err != nil {
			return found{}, err
		}
	}
	if _, known := s.pools[id.Pool]; !known {
		return found{}, refuse(codes.NotFound, "there is no pool %q here", id.Pool)
	}
	volumes, err := s.lookUp(ctx, id)
	if err != nil {
		return found{}, err
	}
	for _, v := range volumes {
		if at != nil && v.place != at {
			continue
		}
		_, err := ask(ctx, v.place, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.checkPool(ctx, id.Volume) })
		return v, err
	}
	return found{}, withCode(codes.NotFound, errors.New("there is no such volume"))
}

// readVolumeID reads the id of a volume that should exist.
func readVolumeID(s string) (wire.VolumeID, error) {
	if s == "" {
		return wire.VolumeID{}, invalid("volume_id", "", "say which volume")
	}
	id, err := wire.ParseVolumeID(s)
	if err != nil {
		return wire.VolumeID{}, withCode(codes.NotFound, err)
	}
	return id, nil
}
