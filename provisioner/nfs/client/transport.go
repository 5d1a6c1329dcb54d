package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// transport makes calls to one server, over one connection at a time. A name may
// stand for several servers that know nothing of each other's clients: the
// address that was found first is kept for as long as it answers.
type transport struct {
	address      string
	unprivileged bool
	options      PoolOptions
	xid          atomic.Uint32
	reached      atomic.Bool
	dialing      chan struct{} // held, by what it holds, by whoever connects
	// heard is when the server said something last, in Unix nanoseconds.
	heard atomic.Int64
	// down is why calls fail without being tried, for a moment after the server
	// was found silent: what is left to do for the same volume would wait as
	// long again.
	down atomic.Pointer[outage]

	mu sync.Mutex
	// conns holds the connection in use, and those that are leaving.
	conns []*conn
	// pinned is what address stood for; "" when that is to be found out.
	pinned string
}

type outage struct {
	until time.Time
	cause *UnreachableError
}

func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		c.close(net.ErrClosed)
	}
}

func (t *transport) conn() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.IndexFunc(t.conns, (*conn).usable); i >= 0 {
		return t.conns[i]
	}
	return nil
}

// connect returns a connection, which it waits for no longer than silence.
func (t *transport) connect(ctx context.Context, silence time.Duration) (*conn, error) {
	if c := t.conn(); c != nil {
		return c, nil
	}
	stuck := time.NewTimer(silence)
	defer stuck.Stop()
	select {
	case t.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-stuck.C:
		return nil, errSilent
	}
	defer func() { <-t.dialing }()
	if c := t.conn(); c != nil {
		return c, nil
	}
	network, err := t.dial(ctx, silence)
	if err != nil {
		return nil, err
	}
	t.reached.Store(true)
	c := newConn(network, t.options.IdleTimeout, func() { t.heard.Store(time.Now().UnixNano()) })
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns = append(slices.DeleteFunc(t.conns, func(c *conn) bool { return c.err() != nil }), c)
	return c, nil
}

// dial is called by whoever holds dialing.
func (t *transport) dial(ctx context.Context, timeout time.Duration) (net.Conn, error) {
	t.mu.Lock()
	address := cmp.Or(t.pinned, t.address)
	t.mu.Unlock()
	network, err := dial(ctx, t.options.Resolver, address, t.unprivileged, timeout)
	if err != nil {
		t.pin("")
		return nil, err
	}
	t.pin(network.RemoteAddr().String())
	return network, nil
}

func (t *transport) pin(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pinned = address
}

// call makes a call, and if it changes nothing makes it again when there is no
// answer. If the server may have seen a call that failed and changes something,
// the error wraps ErrOutcomeUnknown, and late is the reply that may still come.
func (t *transport) call(ctx context.Context, r request) (record []byte, late <-chan []byte, err error) {
	xid := t.xid.Add(1)
	message, err := r.encode(xid)
	if err != nil {
		return nil, nil, err
	}
	err = t.persist(ctx, r.again, func(patience time.Duration) (sent bool, err error) {
		var c *conn
		record, late, c, err = t.once(ctx, xid, message, patience)
		sent = late != nil
		if sent && r.again {
			c.abandon(xid)
			late = nil
		}
		return sent, err
	})
	return record, late, err
}

// once sends a message and waits for the reply, as roundTrip does.
func (t *transport) once(ctx context.Context, xid uint32, message []byte, patience time.Duration) (record []byte, late <-chan []byte, c *conn, err error) {
	if c, err = t.connect(ctx, patience); err != nil {
		return nil, nil, nil, err
	}
	record, late, err = c.roundTrip(ctx, xid, message, patience)
	return record, late, c, err
}

// persist makes attempts at a call until one succeeds or the server has been
// silent for too long, but none after one that the server may have seen, unless
// the call may be made again.
func (t *transport) persist(ctx context.Context, again bool, attempt func(patience time.Duration) (sent bool, err error)) error {
	if down := t.down.Load(); down != nil && time.Now().Before(down.until) {
		return down.cause
	}
	begun := time.Now()
	var (
		wait    backoff
		refused error // of the last attempt that was refused rather than ignored
	)
	for {
		patience := t.options.AnswerTimeout - t.silentSince(begun)
		if again {
			patience = min(patience, t.options.AnswerTimeout/2)
		}
		sent, err := attempt(patience)
		unknown := sent && !again
		if err != nil && !isSilence(err) {
			refused = err
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return t.unfinished(ctx, unknown, err)
		case t.silentSince(begun) >= t.options.AnswerTimeout, unknown && isSilence(err), !t.reached.Load() && !isSilence(err):
			return outcome(unknown, t.unreachable(begun, cmp.Or(refused, err)))
		case unknown:
			return outcome(unknown, fmt.Errorf("server %s: %w", t.address, err))
		case !wait.sleep(ctx):
			return t.unfinished(ctx, unknown, err)
		}
	}
}

// silentSince is for how long, at most since begun, the server has said nothing.
func (t *transport) silentSince(begun time.Time) time.Duration {
	return time.Since(later(begun, time.Unix(0, t.heard.Load())))
}

// unreachable is the error of a call for which the server could not be reached,
// or which it has not answered.
func (t *transport) unreachable(begun time.Time, err error) error {
	e := &UnreachableError{Server: t.address}
	var errno syscall.Errno
	switch {
	case isSilence(err):
		e.After = min(max(time.Since(begun).Round(time.Second/10), time.Second/10), t.options.AnswerTimeout)
		if t.silentSince(begun) < t.options.AnswerTimeout { // it answers others
			return fmt.Errorf("%w: it did not answer within %s", ErrBusy, e.After)
		}
	case errors.As(err, &errno):
		e.Err = errno // without the addresses, which are said already
	default:
		e.Err = err
	}
	t.pin("")
	t.down.Store(&outage{until: time.Now().Add(t.options.AnswerTimeout / 5), cause: e})
	return e
}

// isSilence reports whether err says that a connection, or the attempt to make
// one, ran out of time.
func isSilence(err error) bool {
	return errors.Is(err, errSilent) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// unfinished is the error of a call whose context ended.
func (t *transport) unfinished(ctx context.Context, unknown bool, err error) error {
	if timeout, ok := timedOut(ctx); ok {
		return outcome(unknown, &UnreachableError{Server: t.address, After: timeout.after})
	}
	cause := ctx.Err()
	if !errors.Is(err, cause) {
		cause = fmt.Errorf("%w: %w", cause, err)
	}
	return outcome(unknown, fmt.Errorf("server %s: %w", t.address, cause))
}

// outcome adds ErrOutcomeUnknown to err when it applies.
func outcome(unknown bool, err error) error {
	if !unknown {
		return err
	}
	return fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
}

// backoff waits longer every time, up to most, which is maxBackoff if it is 0.
type backoff struct{ last, most time.Duration }

const (
	firstBackoff = 10 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// sleep returns false when ctx ended.
func (b *backoff) sleep(ctx context.Context) bool {
	b.last = min(max(2*b.last, firstBackoff), cmp.Or(b.most, maxBackoff))
	timer := time.NewTimer(b.last/2 + rand.N(b.last)) //nolint:gosec // spreads retries
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
