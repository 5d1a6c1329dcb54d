package node

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

const (
	// maxEntries bounds a page, so that it fits into a gRPC message of 4 MiB
	// however long the volumes' paths are.
	maxEntries = 400
	// listPatience is how long a disk may take to read a page of markers.
	listPatience = 30 * time.Second
)

// position is where a listing goes on: after a volume, in the directory of that
// number.
type position struct {
	Place int    `json:"place"`
	After string `json:"after,omitempty"`
	// Unread says that something before could not be read.
	Unread bool `json:"unread,omitempty"`
}

func (p position) token() string {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // it holds nothing that can't be encoded
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func parsePosition(token string) (position, error) {
	var p position
	if token == "" {
		return p, nil
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil || p.Place < 0 {
		return p, refuse(codes.Aborted, "starting_token %s is none that was given out: begin anew", quoted(token))
	}
	return p, nil
}

// ListVolumes lists the volumes of all pools. What can't be read does not hide
// the rest: it comes last, as the error of a page of its own.
func (s *Server) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	at, err := parsePosition(req.GetStartingToken())
	if err != nil {
		return nil, answer(err)
	}
	if req.GetMaxEntries() < 0 {
		return nil, answer(invalid("max_entries", fmt.Sprint(req.GetMaxEntries()), "want 0 or more"))
	}
	most := int(req.GetMaxEntries())
	if most == 0 || most > maxEntries {
		most = maxEntries
	}
	page := &csi.ListVolumesResponse{}
	var reports []wire.PoolReport
	defer func() { s.report(ctx, reports) }()
	for ; at.Place < len(s.ledger.places); at.Place, at.After = at.Place+1, "" {
		place := s.ledger.places[at.Place]
		// One more than there is room for tells whether there is more.
		markers, err := place.markers(ctx, at.After, most-len(page.Entries)+1)
		report := place.report(ctx)
		report.Unread = err != nil
		reports = append(reports, report)
		for _, m := range markers {
			if len(page.Entries) == most {
				page.NextToken = at.token()
				return page, nil
			}
			page.Entries = append(page.Entries, &csi.ListVolumesResponse_Entry{Volume: describe(found{place, m})})
			at.After = m.Volume
		}
		at.Unread = at.Unread || err != nil
	}
	if !at.Unread {
		return page, nil
	}
	if len(page.Entries) > 0 {
		page.NextToken = at.token()
		return page, nil
	}
	if err := s.unread(ctx); err != nil {
		return nil, answer(err)
	}
	return page, nil // it can be read by now
}

// markers returns the markers of at most so many volumes whose names come after
// the one given, and what kept it from reading more.
func (p *place) markers(ctx context.Context, after string, most int) ([]directory.Marker, error) {
	type read struct {
		markers []directory.Marker
		err     error
	}
	r, err := askFor(ctx, p, listPatience, func(ctx context.Context) (read, error) {
		var r read
		for m, err := range p.Markers(ctx, after) {
			if err != nil {
				r.err = err
				break
			}
			if r.markers = append(r.markers, m); len(r.markers) == most {
				break
			}
		}
		return r, nil
	})
	return r.markers, errors.Join(err, p.named(r.err))
}

// unread returns what keeps volumes from being listed.
func (s *Server) unread(ctx context.Context) error {
	var failed []error
	for _, p := range s.ledger.places {
		_, err := askFor(ctx, p, listPatience, func(ctx context.Context) (struct{}, error) {
			for _, err := range p.Markers(ctx, "") {
				if err != nil {
					return struct{}{}, err
				}
			}
			return struct{}{}, nil
		})
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// ControllerGetVolume describes one volume.
func (s *Server) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	id, err := readVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, answer(err)
	}
	v, err := s.existing(ctx, id)
	if err != nil {
		return nil, answer(err)
	}
	return &csi.ControllerGetVolumeResponse{Volume: describe(v), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// ControllerGetVolumeHealth says whether the directory of a volume is there.
func (s *Server) ControllerGetVolumeHealth(ctx context.Context, req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	id, err := readVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, answer(err)
	}
	v, err := s.existing(ctx, id)
	if err != nil {
		return nil, answer(err)
	}
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	_, err = ask(ctx, v.place, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.Inspect(ctx, v.Volume) })
	if err != nil {
		if ctx.Err() != nil {
			return nil, answer(ctx.Err())
		}
		health.HealthStatuses = append(health.HealthStatuses, illness(err))
	}
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// ValidateVolumeCapabilities says whether a volume can be to pods what is asked.
func (s *Server) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	id, err := readVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, answer(err)
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, answer(invalid("volume_capabilities", "", "say what to validate"))
	}
	if _, err := s.existing(ctx, id); err != nil {
		return nil, answer(err)
	}
	if problem := unconfirmed(req); problem != "" {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: problem}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// unconfirmed says what of a request a volume can't be, or "".
func unconfirmed(req *csi.ValidateVolumeCapabilitiesRequest) string {
	err := checkCapabilities(req.GetVolumeCapabilities())
	if err == nil {
		_, err = readParameters(req.GetParameters())
	}
	switch {
	case err != nil:
		return err.Error()
	case len(req.GetMutableParameters()) > 0:
		return "volumes have no mutable parameters"
	}
	return ""
}
