package agents

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// agent is the one of a node, at one address. It is a grpc.ClientConnInterface
// whose calls end in time, and that says so when the agent does not answer.
type agent struct {
	endpoint
	all  *Agents
	gate *gate.Gate
	log  logr.Logger

	mu sync.Mutex
	// conn is nil while none is needed.
	conn *connection
	// retired says that nobody will call any more.
	retired bool
	// answered is when an answer came last.
	answered time.Time
	// silent says that the agent did not answer when it was last called.
	silent bool
	// probe is under way, nil when none is.
	probe *probe
}

// Invoke implements grpc.ClientConnInterface. An error that the agent answered
// with is a gRPC status; that the agent can't be reached is a
// *provisioner.UnavailableError.
func (a *agent) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := a.prove(ctx, method); err != nil {
		return err
	}
	return a.invoke(ctx, method, args, reply, opts...)
}

// invoke calls the agent. Probes have less time, and do not count as calls.
func (a *agent) invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := a.gate.Enter(ctx); err != nil {
		return err
	}
	defer a.gate.Leave()
	timeout := a.all.options.Timeout
	if method == csi.Identity_Probe_FullMethodName {
		timeout = min(connectTimeout, timeout)
	} else {
		if err := a.all.enter(ctx); err != nil {
			return err
		}
		defer a.all.leave()
	}
	conn, err := a.acquire()
	if err != nil {
		return err
	}
	defer a.release(conn)

	began := a.all.options.Clock.Now()
	callCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	callCtx = metadata.AppendToOutgoingContext(callCtx, wire.MetaNode, a.node)
	var header, trailer metadata.MD
	err = conn.grpc.Invoke(callCtx, method, args, reply, append(opts, grpc.Header(&header), grpc.Trailer(&trailer))...)
	a.all.options.Metrics.observe(method, status.Code(err), a.all.options.Clock.Since(began))
	if err == nil || len(header)+len(trailer) > 0 {
		a.hear()
		return a.gate.Settle(gate.Answers, err)
	}
	return a.settle(ctx, conn, began, timeout, err)
}

// NewStream implements grpc.ClientConnInterface. CSI's controller service has no
// streams.
func (a *agent) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "agents know no streams")
}

// settle tells why a call that got no answer got none.
func (a *agent) settle(ctx context.Context, conn *connection, began time.Time, timeout time.Duration, err error) error {
	if ctx.Err() != nil {
		return a.gate.Settle(gate.Unknown, ctx.Err())
	}
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		if a.answeredSince(began) {
			// The agent is there; what it was asked for hangs, a disk perhaps.
			return a.gate.Settle(gate.Busy, a.problem(fmt.Errorf("no answer within %s, though it has answered others meanwhile", timeout)))
		}
		err = a.silence(timeout)
	case codes.Unavailable, codes.Canceled:
		if err = conn.why(err); isTimeout(err) {
			err = a.silence(conn.patience)
		} else {
			err = a.problem(err)
		}
	default:
		a.hear()
		return a.gate.Settle(gate.Answers, err)
	}
	a.lose(conn, err)
	return a.gate.Settle(gate.Silent, err)
}

// problem is an error about this agent.
func (a *agent) problem(err error) error {
	return fmt.Errorf("agent on node %s (%s): %w", a.node, a.address, err)
}

// silence is the error for an agent that says nothing at all.
func (a *agent) silence(patience time.Duration) error {
	return fmt.Errorf("agent on node %s (%s) did not answer within %s", a.node, a.address, patience)
}

// hear notes that the agent has answered.
func (a *agent) hear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered = a.all.options.Clock.Now()
	if a.silent {
		a.silent = false
		a.log.Info("An agent answers again")
	}
}

func (a *agent) answeredSince(began time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answered.After(began)
}

func (a *agent) isSilent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.silent
}

// connection is one to an agent, and what went wrong on it.
type connection struct {
	grpc *grpc.ClientConn
	// patience is how long it may take to connect.
	patience time.Duration

	// These are guarded by the agent's mutex.
	users int
	// unwanted says that the connection is closed as soon as nobody uses it.
	unwanted bool
	idle     interface{ Stop() bool }
	// parked is where it stands among those that nobody uses.
	parked *list.Element

	mu    sync.Mutex
	cause error
}

// acquire returns the connection, a new one if there is none.
func (a *agent) acquire() (*connection, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		conn, err := a.connect()
		if err != nil {
			return nil, a.problem(err)
		}
		conn.unwanted = a.retired
		a.conn = conn
	}
	a.wakeLocked(a.conn)
	a.conn.users++
	return a.conn, nil
}

// release gives a connection back, to be closed when it stays unused.
func (a *agent) release(conn *connection) {
	if oldest := a.park(conn); oldest != nil {
		oldest.agent.closeIdle(oldest.connection)
	}
}

// park leaves a connection that nobody uses alone for a while. It returns one that
// has to be closed in its favour.
func (a *agent) park(conn *connection) (oldest *idleConnection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if conn.users--; conn.users > 0 {
		return nil
	}
	if conn.unwanted {
		a.closeLocked(conn)
		return nil
	}
	conn.idle = a.all.options.Clock.AfterFunc(a.all.options.Idle, func() { a.closeIdle(conn) })
	conn.parked, oldest = a.all.idle.add(&idleConnection{a, conn})
	return oldest
}

// wakeLocked takes a connection into use.
func (a *agent) wakeLocked(conn *connection) {
	if conn.idle != nil {
		conn.idle.Stop()
		conn.idle = nil
	}
	a.all.idle.remove(conn.parked)
	conn.parked = nil
}

// closeIdle closes a connection, unless somebody has begun to use it.
func (a *agent) closeIdle(conn *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if conn.users == 0 {
		a.closeLocked(conn)
	}
}

// lose gives up a connection on which the agent does not answer. The next call
// makes a new one, which tells more than an old one would.
func (a *agent) lose(conn *connection, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn.unwanted = true
	if a.conn == conn {
		a.conn = nil
	}
	if !a.silent {
		a.silent = true
		a.log.Info("An agent does not answer; volumes of its node wait", "reason", err.Error())
	}
}

// retire closes the connection once the calls under way are over.
func (a *agent) retire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retired = true
	if a.conn == nil {
		return
	}
	a.conn.unwanted = true
	if a.conn.users == 0 {
		a.closeLocked(a.conn)
	}
}

func (a *agent) closeLocked(conn *connection) {
	a.wakeLocked(conn)
	_ = conn.grpc.Close() // fails only when it is closed
	if a.conn == conn {
		a.conn = nil
	}
}

func (a *agent) connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn != nil
}

// why returns what went wrong with the connection, and err when nothing is known.
func (c *connection) why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return errors.New(status.Convert(err).Message())
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// begin forgets what went wrong before: gRPC connects anew after an agent has
// hung up.
func (c *connection) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cause = nil
}

// failed notes why there is no connection. What happened first counts.
func (c *connection) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	// "dial tcp 10.0.0.7:9460: " says what the agent's address says already.
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		err = op.Err
	}
	c.cause = err
}
