package node

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// DeleteVolume moves the volume's directory to the trash or the archive, or lets
// it go, after the marker has confirmed what the id says, and what the caller has
// attached (wire.Expectation). With wire.MetaIfEmpty it takes the volume back.
func (s *Server) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, answer(invalid("volume_id", "", "say which volume"))
	}
	id, err := wire.ParseVolumeID(req.GetVolumeId())
	if err != nil {
		s.options.Log.Info("Was asked to delete a volume that can't be", "reason", err.Error())
		return &csi.DeleteVolumeResponse{}, nil // no volume has such an id
	}
	end, err := s.begin(id.Volume)
	if err != nil {
		return nil, err
	}
	defer end()
	if source, ok := wire.IfEmpty(ctx); ok {
		err = s.takeBack(ctx, id, source)
	} else {
		err = s.delete(ctx, id)
	}
	if err != nil {
		return nil, answer(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *Server) delete(ctx context.Context, id wire.VolumeID) error {
	expected, ok := wire.ExpectationFrom(ctx)
	if ok {
		at, err := s.expectedPlace(id, expected)
		if err != nil {
			return fmt.Errorf("delete volume %s: %w; not touching anything", id.Volume, err)
		}
		return at.within(ctx, func() error {
			if err := at.checkPool(ctx, id.Volume); err != nil {
				return fmt.Errorf("delete volume %s: %w; not touching anything", id.Volume, err)
			}
			return at.Delete(ctx, id.Volume, expected.Expectation)
		})
	}
	volumes, err := s.lookUp(ctx, id)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w; not touching anything", id.Volume, err)
	}
	var failed []error
	for _, v := range volumes {
		expect := directory.Expectation{ClaimUID: v.ClaimUID, Path: v.Path, OnDelete: wire.OnDelete(ctx).OnDelete}
		failed = append(failed, v.within(ctx, func() error { return v.Delete(ctx, id.Volume, expect) }))
	}
	return errors.Join(failed...)
}

// takeBack drops the volume whose directory is source, as long as it is empty or
// was adopted.
func (s *Server) takeBack(ctx context.Context, id wire.VolumeID, source string) error {
	volumes, err := s.lookUp(ctx, id)
	if err != nil {
		return fmt.Errorf("discard volume %s: %w", id.Volume, err)
	}
	var failed []error
	for _, v := range volumes {
		if path.Join(v.base, v.Path) != source {
			continue
		}
		failed = append(failed, v.within(ctx, func() error {
			if err := v.checkPool(ctx, id.Volume); err != nil {
				return fmt.Errorf("discard volume %s: %w", id.Volume, err)
			}
			return v.Discard(ctx, id.Volume)
		}))
	}
	return errors.Join(failed...)
}

// lookUp returns the volume of an id, from every directory of its pool that has
// it: more than one only when a disk was away while the volume was made again. A
// marker that the id's seal does not agree with is an error. No volume is none.
func (s *Server) lookUp(ctx context.Context, id wire.VolumeID) ([]found, error) {
	p, err := s.pool(id.Pool)
	if err != nil {
		return nil, withCode(codes.FailedPrecondition, err)
	}
	volumes, err := p.find(ctx, id.Volume)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if wire.Seal(v.ClaimUID, v.Path) != id.Seal {
			return nil, v.named(fmt.Errorf("the marker of volume %s does not agree with the volume's id: %w", id.Volume, directory.ErrNotOwned))
		}
	}
	return volumes, nil
}

// expectedPlace returns the directory of the pool that a PersistentVolume's source
// lies in, provided that all it says fits together.
func (s *Server) expectedPlace(id wire.VolumeID, e wire.Expectation) (*place, error) {
	if wire.Seal(e.ClaimUID, e.Path) != id.Seal {
		return nil, withCode(codes.FailedPrecondition, errors.New("its id was made for another claim or path"))
	}
	if err := directory.CheckPath(e.Path); err != nil {
		return nil, withCode(codes.FailedPrecondition, err)
	}
	p, err := s.pool(id.Pool)
	if err != nil {
		return nil, withCode(codes.FailedPrecondition, err)
	}
	var wants []string
	for _, at := range p.places {
		want := path.Join(at.base, e.Path)
		if e.Source == want {
			return at, nil
		}
		wants = append(wants, fmt.Sprintf("%q", want))
	}
	return nil, refuse(codes.FailedPrecondition, "its path is %q, by its annotations and the pool's directory it should be %s", e.Source, strings.Join(wants, " or "))
}
