package agents

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// bufferSize is that of a connection's buffers. There may be thousands of
// connections, and messages are short.
const bufferSize = 4 << 10

// lastWords is how long to wait for what a server has to say when it does not
// listen any more; it has been said by then.
const lastWords = 100 * time.Millisecond

// connect prepares a connection, which is made with the first call. The backoff
// is gRPC's, and hardly matters: a connection that fails is not used again.
func (a *agent) connect() (*connection, error) {
	o := a.all.options
	conn := &connection{patience: min(connectTimeout, o.Timeout)}
	connect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: conn.patience}
	var err error
	conn.grpc, err = grpc.NewClient("passthrough:///"+a.address,
		grpc.WithTransportCredentials(&observed{o.Credentials, conn}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn.begin()
			raw, err := o.Dial(ctx, address)
			if err != nil {
				conn.failed(err)
			}
			return raw, err
		}),
		grpc.WithConnectParams(connect),
		// Idle connections are closed here, since gRPC would keep what surrounds
		// them.
		grpc.WithIdleTimeout(0),
		grpc.WithReadBufferSize(bufferSize),
		grpc.WithWriteBufferSize(bufferSize),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	)
	return conn, err
}

// observed are credentials that tell a connection why a handshake failed, and
// what came after, which gRPC wraps into text.
type observed struct {
	credentials.TransportCredentials
	conn *connection
}

// ClientHandshake implements credentials.TransportCredentials.
func (o *observed) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := o.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		o.conn.failed(err)
		return nil, nil, err
	}
	return &observedConn{conn, o.conn}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (o *observed) Clone() credentials.TransportCredentials {
	return &observed{o.TransportCredentials.Clone(), o.conn}
}

// observedConn tells why it ended. In TLS 1.3 the handshake of the client is over
// before the server has seen the client's certificate, so that a refusal comes
// later.
type observedConn struct {
	net.Conn
	conn *connection
}

// Read implements net.Conn.
func (o *observedConn) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		o.conn.failed(errors.New("it closed the connection"))
	case err != nil:
		o.conn.failed(err)
	}
	return n, err
}

// Write implements net.Conn. What the other side has said before it hung up tells
// more than that it did.
func (o *observedConn) Write(p []byte) (int, error) {
	n, err := o.Conn.Write(p)
	if err != nil {
		if o.SetReadDeadline(time.Now().Add(lastWords)) == nil {
			_, _ = o.Read(make([]byte, 1))
		}
		o.conn.failed(err)
	}
	return n, err
}
