package hostpath

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// retryUnavailable is when a node that did not answer is tried again.
const retryUnavailable = 5 * time.Second

// on calls f with the server of a node. An error is a *provisioner.UnavailableError
// when the node, or its disk, does not answer, a *wire.RemoteError when its server
// refused, and wraps ErrNoServer when it has none.
func (d *Driver) on(ctx context.Context, node string, f func(context.Context, csi.ControllerClient) error) error {
	return d.at(ctx, spot{node: node}, f)
}

// at calls f as on does. If f makes a volume, at names the pool too.
func (d *Driver) at(ctx context.Context, at spot, f func(context.Context, csi.ControllerClient) error) error {
	server, err := d.options.Nodes.Server(ctx, at.node)
	if err == nil {
		err = f(ctx, server)
	} else if _, unavailable := provisioner.RetryAfter(err); !unavailable {
		return err
	}
	d.silence.learn(at, err)
	if _, unavailable := provisioner.RetryAfter(err); unavailable {
		return err
	}
	err = wire.Error(err)
	again := func(err error) error { return &provisioner.UnavailableError{RetryAfter: retryUnavailable, Err: err} }
	switch code := wire.CodeOf(err); {
	case code == codes.Unavailable:
		return again(fmt.Errorf("node %s: %w", at.node, err))
	case code == codes.DeadlineExceeded:
		return again(fmt.Errorf("node %s has not answered in time: %w", at.node, err))
	case code == codes.Aborted && d.silence.of(at) > 0:
		return again(fmt.Errorf("node %s: %w", at.node, err)) // what is under way hangs
	}
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
