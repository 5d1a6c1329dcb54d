package hostpath

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Nodes reaches the servers of package node, wherever they run.
//
// Deadlines, limits on calls at a time and the care for connections are the
// implementation's: the driver just calls.
type Nodes interface {
	// Server returns the server on the node of that name. The error is a
	// *provisioner.UnavailableError when there is one that can't be reached for
	// now, and wraps ErrNoServer when the node has none.
	Server(ctx context.Context, node string) (csi.ControllerClient, error)
	// Names returns the names of the nodes that have a server, in no order,
	// reachable or not.
	Names(ctx context.Context) ([]string, error)
}

// ErrNoServer says that a node has no server: no berth agent runs there.
var ErrNoServer = errors.New("no berth agent runs there")

// ErrNotAsked says that a call was not made, which tells nothing about the node:
// there was no room for it, or it is just being looked whether the node answers.
var ErrNotAsked = errors.New("not asked yet")
