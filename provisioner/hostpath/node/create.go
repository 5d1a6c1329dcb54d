package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// CreateVolume makes the directory of a volume, or finishes what an earlier call
// began.
func (s *Server) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c, err := readCreation(req)
	if err != nil {
		return nil, answer(err)
	}
	end, err := s.begin(c.spec.Volume)
	if err != nil {
		return nil, err
	}
	defer end()
	made, err := s.create(ctx, c)
	if err != nil {
		return nil, answer(err)
	}
	return &csi.CreateVolumeResponse{Volume: describe(made)}, nil
}

func (s *Server) create(ctx context.Context, c creation) (found, error) {
	p, err := s.pool(c.pool)
	switch {
	case err != nil && c.spec.Adopt:
		return found{}, fmt.Errorf("%w: %w", directory.ErrNoDirectory, err)
	case err != nil:
		return found{}, withCode(codes.ResourceExhausted, err)
	}
	// At the same time, since the disks of both may hang.
	var others sync.WaitGroup
	others.Go(func() { s.acquaint(ctx, p) })
	before, unread, err := p.findToCreate(ctx, c.spec.Volume)
	others.Wait()
	switch {
	case len(before) > 0 && c.dryRun:
		return before[0], nil
	case len(before) > 0:
		return s.resume(ctx, before[0], c)
	case err != nil:
		return found{}, err
	case errors.Is(unread, directory.ErrDamagedMarker), unread != nil && ctx.Err() != nil:
		return found{}, unread
	}
	if err := s.elsewhere(p, c.spec.Volume); err != nil {
		return found{}, err
	}
	switch {
	case c.onlyExisting:
		return found{}, errors.Join(unread, fmt.Errorf("create volume %s: %w", c.spec.Volume, wire.ErrNoPath))
	case c.spec.Adopt:
		return s.adopt(ctx, p, c)
	case !slices.ContainsFunc(p.places, func(p *place) bool { return p.silent.Load() == 0 }):
		return found{}, unread
	}
	// A directory that can't be read for now costs no more than its own volumes.
	// Should this very volume be in it, which is not known until it was opened, it
	// is empty, and an orphan from now on.
	return s.place(ctx, p, c)
}

// elsewhere refuses a volume that another pool has. Their indexes in memory tell,
// so that a dead disk of another pool costs nothing; acquaint has opened those that
// can be read.
func (s *Server) elsewhere(p *pool, volume string) error {
	for _, other := range s.ledger.places {
		if known, _ := other.Knows(volume); known && other.pool != p.name {
			return refuse(codes.AlreadyExists, "create volume %s: there is one in pool %s, not in pool %s", volume, other.pool, p.name)
		}
	}
	return nil
}

// resume finishes a volume that was begun before.
func (s *Server) resume(ctx context.Context, before found, c creation) (found, error) {
	m := before.Marker
	if m.SizeBytes < c.spec.SizeBytes || c.limit > 0 && m.SizeBytes > c.limit {
		return found{}, refuse(codes.AlreadyExists, "create volume %s: there is one of %s, not of %s", m.Volume, bytes(m.SizeBytes), bytes(c.spec.SizeBytes))
	}
	if m.ClaimUID != c.spec.ClaimUID {
		return found{}, withCode(codes.AlreadyExists, before.named(
			fmt.Errorf("create volume %s: its marker is for a claim with another UID: %w", m.Volume, directory.ErrNotOwned)))
	}
	c.spec.Path = m.Path // what was chosen before counts
	return s.makeAt(ctx, before.place, c.spec)
}

// place makes a new volume in the directory of the pool that has the most room,
// or the next that works.
func (s *Server) place(ctx context.Context, p *pool, c creation) (found, error) {
	candidates, unusable := surveyAwake(ctx, p.places)
	if len(candidates) == 0 {
		return found{}, unusable
	}
	if err := s.checkSize(p, c.spec.SizeBytes, candidates); err != nil && unusable == nil {
		return found{}, err
	}
	candidates, silent := s.measure(ctx, candidates)
	failed := errors.Join(unusable, silent)
	if len(candidates) == 0 {
		return found{}, failed
	}
	if c.spec.Quota == directory.QuotaRequired {
		candidates = prefer(ctx, candidates, func(_ context.Context, c candidate) (bool, error) { return c.limiting, nil })
	}
	wanted := wish{name: c.spec.Volume, size: c.spec.SizeBytes, limited: c.spec.Quota == directory.QuotaAuto || c.spec.Quota == directory.QuotaRequired}
	for len(candidates) > 0 {
		chosen, ok := s.ledger.take(s.options.Limits, candidates, wanted)
		if !ok {
			return found{}, withCode(codes.ResourceExhausted, errors.Join(s.noRoom(p, c.spec.SizeBytes, candidates), failed))
		}
		made, err := s.makeAt(ctx, chosen.place, c.spec)
		s.ledger.give(chosen.place, c.spec.Volume)
		if err == nil || !worthAnother(ctx, err) {
			return made, err
		}
		failed = errors.Join(failed, err)
		candidates = slices.DeleteFunc(candidates, func(c candidate) bool { return c.place == chosen.place })
	}
	return found{}, failed
}

// worthAnother reports whether err is of one directory, so that another one may
// do better.
func worthAnother(ctx context.Context, err error) bool {
	var newPool *wire.NewPoolError
	switch {
	case ctx.Err() != nil, provisioner.IsInfeasible(err), errors.As(err, &newPool):
		return false
	}
	return true
}

// prefer returns those of candidates for which is is true, or all of them when
// there are none: making the volume tells why not, then.
func prefer(ctx context.Context, candidates []candidate, is func(context.Context, candidate) (bool, error)) []candidate {
	if some := only(ctx, candidates, is); len(some) > 0 {
		return some
	}
	return candidates
}

// only returns those of candidates for which is is true.
func only(ctx context.Context, candidates []candidate, is func(context.Context, candidate) (bool, error)) []candidate {
	var some []candidate
	for _, c := range candidates {
		yes, err := ask(ctx, c.place, func(ctx context.Context) (bool, error) { return is(ctx, c) })
		if err == nil && yes {
			some = append(some, c)
		}
	}
	return some
}

// makeAt makes a volume in one directory.
func (s *Server) makeAt(ctx context.Context, at *place, spec directory.Spec) (found, error) {
	made := found{place: at}
	err := at.within(ctx, func() (err error) {
		made.Marker, err = at.Create(ctx, spec)
		return err
	})
	return made, err
}

// checkSize refuses what no amount of tidying up would make room for.
func (s *Server) checkSize(p *pool, wanted int64, candidates []candidate) error {
	var most int64
	for _, c := range candidates {
		most = max(most, s.options.Limits.most(c.space), c.held)
	}
	if wanted <= most {
		return nil
	}
	return withCode(codes.OutOfRange, provisioner.Infeasible(request.SizeField, bytes(wanted),
		"pool %s on node %s has %s in all; ask for no more than that, or use another pool", p.name, s.options.NodeName, bytes(roundDown(most))))
}

// describe returns a volume in CSI's words.
func describe(f found) *csi.Volume {
	m := f.Marker
	if m.Volume == "" { // nothing was begun yet
		return &csi.Volume{VolumeContext: map[string]string{wire.ContextPool: f.pool, wire.ContextDirectory: f.base, wire.ContextPath: m.Path}}
	}
	volume := &csi.Volume{
		VolumeId:      wire.NewVolumeID(f.pool, m.Volume, m.ClaimUID, m.Path).String(),
		CapacityBytes: m.SizeBytes,
		VolumeContext: map[string]string{
			wire.ContextPool:      f.pool,
			wire.ContextPoolID:    f.ID(),
			wire.ContextDirectory: f.base,
			wire.ContextPath:      m.Path,
			wire.ContextVolume:    m.Volume,
			wire.ContextOnDelete:  string(m.OnDelete),
			wire.ContextQuota:     m.QuotaState(),
			wire.ContextClaim:     types.NamespacedName{Namespace: m.ClaimNamespace, Name: m.Claim}.String(),
			wire.ContextClaimUID:  string(m.ClaimUID),
			wire.ContextCreated:   m.Created.Format(time.RFC3339Nano),
		},
	}
	if m.Rights != "" {
		volume.VolumeContext[wire.ContextRights] = m.Rights
	}
	if m.Adopted {
		volume.VolumeContext[wire.ContextAdopted] = wire.AdoptedYes
	}
	return volume
}
