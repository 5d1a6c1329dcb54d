package hostpath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

const (
	// localDeadline is how long a call to a server in this process may take. A
	// dead disk would hold the caller for ever otherwise.
	localDeadline = 30 * time.Second
	// localBuffer is how much of a call may be on its way.
	localBuffer = 64 << 10
)

// Local is the one node whose server runs in this process. Calls go through the
// same gRPC server as an agent's, over a connection in memory.
type Local struct {
	server *node.Server
	grpc   *grpc.Server
	conn   *grpc.ClientConn
	client csi.ControllerClient
}

var _ Nodes = (*Local)(nil)

// NewLocal serves the pools in o in this process.
func NewLocal(o node.Options) (*Local, error) {
	server, err := node.New(o)
	if err != nil {
		return nil, fmt.Errorf("hostpath driver: %w", err)
	}
	listener := bufconn.Listen(localBuffer)
	conn, err := grpc.NewClient("passthrough:///"+o.NodeName,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // it never leaves the process
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithUnaryInterceptor(withDeadline),
	)
	if err != nil {
		return nil, fmt.Errorf("hostpath driver: connect to the node server: %w", err)
	}
	l := &Local{server: server, grpc: grpc.NewServer(), conn: conn, client: csi.NewControllerClient(conn)}
	server.Register(l.grpc)
	go func() { _ = l.grpc.Serve(listener) }() // it ends with Close
	return l, nil
}

func withDeadline(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, localDeadline)
	defer cancel()
	return invoke(ctx, method, req, reply, conn, opts...)
}

// Server returns the server, when the node is this one.
func (l *Local) Server(_ context.Context, node string) (csi.ControllerClient, error) {
	if node != l.server.NodeName() {
		return nil, fmt.Errorf("node %s: %w", node, ErrNoServer)
	}
	return l.client, nil
}

// Names returns the name of the node.
func (l *Local) Names(context.Context) ([]string, error) {
	return []string{l.server.NodeName()}, nil
}

// NodeServer returns what serves the node's pools, for its metrics.
func (l *Local) NodeServer() *node.Server { return l.server }

// Run empties the pools' trash until ctx ends.
func (l *Local) Run(ctx context.Context) error { return l.server.Run(ctx) }

// Close ends the server and gives the pools free for another process.
func (l *Local) Close() error {
	err := l.conn.Close()
	l.grpc.Stop()
	return errors.Join(err, l.server.Close())
}
