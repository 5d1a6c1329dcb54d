package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// countPatience is how long what a directory holds may be counted. It is less than
// patience: a directory of very many files is no disk that hangs.
const countPatience = patience - time.Second

// adopt makes a volume of the one directory that is there for it, in whichever
// directory of the pool, or says what a call that is no dry run would come to. It
// makes no directory.
func (s *Server) adopt(ctx context.Context, p *pool, c creation) (found, error) {
	at, err := s.findToAdopt(ctx, p, c.spec.Path)
	if err != nil {
		return found{}, err
	}
	one, silent := s.measure(ctx, []candidate{at})
	if len(one) == 0 {
		return found{}, silent
	}
	one[0], err = s.credit(ctx, one[0], c.spec)
	if err != nil {
		return found{}, err
	}
	if err := s.checkSize(p, c.spec.SizeBytes, one); err != nil {
		return found{}, err
	}
	if c.dryRun {
		s.ledger.rooms(s.options.Limits, one)
		if !s.options.Limits.fits(c.spec.SizeBytes, one[0]) {
			return found{}, withCode(codes.ResourceExhausted, s.noRoom(p, c.spec.SizeBytes, one))
		}
		return found{place: at.place, Marker: directory.Marker{Path: c.spec.Path}}, nil
	}
	// Nothing limits what was adopted.
	if _, ok := s.ledger.take(s.options.Limits, one, wish{name: c.spec.Volume, size: c.spec.SizeBytes}); !ok {
		return found{}, withCode(codes.ResourceExhausted, s.noRoom(p, c.spec.SizeBytes, one))
	}
	defer s.ledger.give(at.place, c.spec.Volume)
	return s.makeAt(ctx, at.place, c.spec)
}

// sought is what a directory of a pool has said about a path: nothing when it has
// what can be adopted.
type sought struct {
	absent error // there is nothing, in words that do not name the pool
	err    error // there is what can't be adopted, or nobody can say
}

// findToAdopt returns the directory of a pool in which path is. Each of them is
// asked: one that can't be may be the one, or a second.
func (s *Server) findToAdopt(ctx context.Context, p *pool, path string) (candidate, error) {
	asked, spared := awake(p.places)
	candidates, unknown := survey(ctx, asked)
	for _, place := range spared {
		unknown = errors.Join(unknown, place.sparedError())
	}
	answers := make([]sought, len(candidates))
	group := errgroup.Group{}
	for i, c := range candidates {
		group.Go(func() error {
			answers[i].absent, answers[i].err = ask(ctx, c.place, func(ctx context.Context) (absent, err error) {
				if err = c.adoptable(ctx, path); errors.Is(err, directory.ErrNoDirectory) {
					absent, err = err, nil
				}
				return absent, err
			})
			return nil
		})
	}
	_ = group.Wait()
	return chooseToAdopt(p, path, candidates, answers, unknown)
}

// adoptable is Adoptable for a directory that may be one whose disk is not mounted:
// whoever knows the cluster has to say that it is not.
func (p *place) adoptable(ctx context.Context, path string) error {
	nothing := p.Adoptable(ctx, path)
	if !errors.Is(nothing, directory.ErrNoDirectory) {
		return nothing
	}
	blank, err := p.Blank(ctx)
	if err != nil {
		return err
	}
	if !blank {
		return nothing
	}
	if err := p.refuseInitialise(ctx); err != nil {
		return fmt.Errorf("the base is empty and %w: %w", directory.ErrNotInitialised, err)
	}
	return nothing
}

// chooseToAdopt decides by what the candidates have answered about path. Unknown
// says why others can't be asked.
func chooseToAdopt(p *pool, path string, candidates []candidate, answers []sought, unknown error) (candidate, error) {
	var (
		there   []candidate
		bases   []string
		without []string // the bases that have nothing
		refused error
		nothing error
	)
	for i, c := range candidates {
		switch err := answers[i].err; {
		case answers[i].absent != nil:
			without, nothing = append(without, c.base), answers[i].absent
		case err == nil, provisioner.IsInfeasible(err):
			there, bases, refused = append(there, c), append(bases, c.base), errors.Join(refused, err)
		default:
			unknown = errors.Join(unknown, err)
		}
	}
	switch {
	case len(there) > 1:
		return candidate{}, provisioner.Infeasible("StorageClass parameter existing", "adopt",
			"%s is in %s of pool %s: keep one of them, and rename the other", quoted(path), strings.Join(bases, " and in "), p.name)
	case unknown != nil:
		return candidate{}, unknown
	case refused != nil:
		return candidate{}, refused
	case len(there) > 0:
		return there[0], nil
	case len(without) > 1:
		nothing = fmt.Errorf("directories %s: %w", strings.Join(without, " and "), nothing)
	}
	return candidate{}, fmt.Errorf("pool %s: %w", p.name, nothing)
}

// credit gives at the room that the directory to be adopted takes already, as far as
// spec needs it. One of so many files that they can't be counted in time is taken
// for what its disk holds.
func (s *Server) credit(ctx context.Context, at candidate, spec directory.Spec) (candidate, error) {
	one := []candidate{at}
	s.ledger.rooms(s.options.Limits, one)
	if s.options.Limits.fits(spec.SizeBytes, one[0]) {
		return at, nil
	}
	held, err := ask(ctx, at.place, func(ctx context.Context) (int64, error) {
		ctx, cancel := context.WithTimeout(ctx, countPatience)
		defer cancel()
		return at.Holds(ctx, spec.Path, spec.SizeBytes)
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		s.options.Log.Info("Did not count all that is in a directory to be adopted", "directory", at.base, "path", spec.Path, "counted", held)
		held = size(at.space.Total - min(at.space.Free, at.space.Total))
	case err != nil:
		return candidate{}, err
	}
	at.held = held
	at.space.Free = min(at.space.Total, at.space.Free+uint64(held)) //nolint:gosec // not negative
	return at, nil
}
