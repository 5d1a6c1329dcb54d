package hostpath

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// retryUnavailable is when a node that did not answer is tried again.
const retryUnavailable = 5 * time.Second

// on calls f with the server of a node. An error is a *provisioner.UnavailableError
// when the node could not be reached, a *wire.RemoteError when its server refused,
// and wraps ErrNoServer when it has none.
func (d *Driver) on(ctx context.Context, node string, f func(context.Context, csi.ControllerClient) error) error {
	server, err := d.options.Nodes.Server(ctx, node)
	if err != nil {
		var unavailable *provisioner.UnavailableError
		if errors.As(err, &unavailable) {
			d.silence.begins(node)
		}
		return err
	}
	err = f(ctx, server)
	var unavailable *provisioner.UnavailableError
	if errors.As(err, &unavailable) {
		d.silence.begins(node)
		return err
	}
	err = wire.Error(err)
	switch wire.CodeOf(err) {
	case codes.Unavailable:
		d.silence.begins(node)
		return &provisioner.UnavailableError{RetryAfter: retryUnavailable, Err: fmt.Errorf("node %s: %w", node, err)}
	case codes.DeadlineExceeded:
		d.silence.begins(node)
		return fmt.Errorf("node %s has not answered in time: %w", node, err)
	case codes.Canceled:
		return err
	}
	d.silence.ends(node)
	return err
}

// outOfRange turns the code OutOfRange into an infeasible error, which names the
// size as the claim does.
func outOfRange(err error, size int64) error {
	return outOfRangeOf(err, *resource.NewQuantity(size, resource.BinarySI))
}

func outOfRangeOf(err error, size resource.Quantity) error {
	if wire.CodeOf(err) != codes.OutOfRange {
		return err
	}
	problem := err.Error()
	var infeasible *provisioner.InfeasibleError
	if errors.As(err, &infeasible) {
		problem = infeasible.Problem
	}
	return provisioner.Infeasible(request.SizeField, size.String(), "%s", problem)
}

// silence remembers since when nodes have not answered.
type silence struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	since map[string]time.Time
}

func newSilence(c clock.PassiveClock) *silence {
	return &silence{clock: c, since: map[string]time.Time{}}
}

func (s *silence) begins(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, already := s.since[node]; !already {
		s.since[node] = s.clock.Now()
	}
}

func (s *silence) ends(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.since, node)
}

// of returns for how long node has not answered.
func (s *silence) of(node string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, silent := s.since[node]
	if !silent {
		return 0
	}
	return s.clock.Since(since)
}
