package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Server serves the pools of one node.
type Server struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	options Options
	pools   map[string]*pool
	ledger  ledger

	mu sync.Mutex
	// busy holds the volumes that a call works on.
	busy map[string]bool
}

// New returns the server for the pools in o. It does not look at their
// directories: each is opened when it is first needed.
func New(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Server{options: o, pools: map[string]*pool{}, busy: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(o.Pools)) {
		p := &pool{name: name}
		for _, base := range o.Pools[name] {
			place, err := newPlace(o, name, base)
			if err != nil {
				return nil, err
			}
			p.places = append(p.places, place)
			s.ledger.places = append(s.ledger.places, place)
		}
		s.pools[name] = p
	}
	return s, nil
}

// Register adds the services to a gRPC server.
func (s *Server) Register(registrar grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(registrar, s)
	csi.RegisterControllerServer(registrar, s)
}

// NodeName returns the name of the node.
func (s *Server) NodeName() string { return s.options.NodeName }

// Run empties the trash of all directories, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range s.ledger.places {
		group.Go(func() error { return p.Run(ctx) })
	}
	return group.Wait()
}

// Close gives the pools free for another process. The server must not be in use.
func (s *Server) Close() error {
	var failed []error
	for _, p := range s.ledger.places {
		failed = append(failed, p.named(p.Close()))
	}
	return errors.Join(failed...)
}

// poolNames returns the names of the pools, sorted.
func (s *Server) poolNames() []string { return slices.Sorted(maps.Keys(s.pools)) }

// pool returns the pool of that name. The error says how to add it.
func (s *Server) pool(name string) (*pool, error) {
	p, ok := s.pools[name]
	if !ok {
		return nil, fmt.Errorf("pool %q is not configured on node %s, it has %s: add --pool %s=<directory>",
			name, s.options.NodeName, strings.Join(s.poolNames(), ", "), name)
	}
	return p, nil
}

// begin keeps other calls away from a volume until end is called. It fails when
// one is at work on it.
func (s *Server) begin(volume string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[volume] {
		return nil, errBusy(volume)
	}
	s.busy[volume] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, volume)
	}, nil
}

// found is a volume where it lies.
type found struct {
	*place
	directory.Marker
}

// find looks for the marker of volume in the directories of a pool, all at once.
// The error says which of them could not be asked, unless the volume was found.
func (p *pool) find(ctx context.Context, volume string) ([]found, error) {
	return find(ctx, p.places, volume)
}

// findToCreate is find for a volume that is made when there is none. It does not
// wait for a disk that did not answer just now if the directory's index, which is
// in memory and complete, has no such volume. A directory that was not opened
// since the start may have it from before, and is asked every time: two
// directories for one volume would be worse than waiting. So is one that has it;
// when that does not answer, the volume can't be made anywhere else.
func (p *pool) findToCreate(ctx context.Context, volume string) (_ []found, unread error, _ error) {
	asked, spared := awake(p.places)
	var skipped []error
	for _, place := range spared {
		if known, sure := place.Knows(volume); known || !sure {
			asked = append(asked, place)
		} else {
			skipped = append(skipped, place.sparedError())
		}
	}
	all, unread := find(ctx, asked, volume)
	if len(all) > 0 {
		return all, nil, nil
	}
	unread = errors.Join(unread, errors.Join(skipped...))
	for _, place := range p.places {
		if known, _ := place.Knows(volume); known && place.silent.Load() != 0 {
			return nil, unread, fmt.Errorf("create volume %s: it was begun before: %w", volume, place.sparedError())
		}
	}
	return nil, unread, nil
}

func find(ctx context.Context, places []*place, volume string) ([]found, error) {
	answers := make([][]found, len(places))
	failed := make([]error, len(places))
	group := errgroup.Group{}
	for i, place := range places {
		group.Go(func() error {
			answers[i], failed[i] = ask(ctx, place, func(ctx context.Context) ([]found, error) {
				m, ok, err := place.Find(ctx, volume)
				if err != nil || !ok {
					return nil, err
				}
				return []found{{place, m}}, nil
			})
			return nil
		})
	}
	_ = group.Wait()
	if all := slices.Concat(answers...); len(all) > 0 {
		return all, nil
	}
	return nil, errors.Join(failed...)
}
