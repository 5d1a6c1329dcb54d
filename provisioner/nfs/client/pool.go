package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// PoolOptions configures a Pool. The zero value is fine.
type PoolOptions struct {
	// Connections is how many connections to one server are open at most. Each
	// carries many calls at once. The default is 2.
	Connections int
	// IdleTimeout closes a connection without calls. The default is a minute.
	IdleTimeout time.Duration
	// AnswerTimeout is how long a server may be silent, with a call outstanding,
	// before the call fails with ErrUnreachable. After half of it another
	// connection is tried, for a call that may be repeated. The default is 5
	// seconds.
	AnswerTimeout time.Duration
}

// Pool shares connections between the clients of the same servers.
type Pool struct {
	options PoolOptions

	mu         sync.Mutex
	transports map[string]*transport
}

// NewPool returns an empty pool.
func NewPool(options PoolOptions) *Pool {
	if options.Connections <= 0 {
		options.Connections = 2
	}
	if options.IdleTimeout <= 0 {
		options.IdleTimeout = time.Minute
	}
	if options.AnswerTimeout <= 0 {
		options.AnswerTimeout = 5 * time.Second
	}
	return &Pool{options: options, transports: map[string]*transport{}}
}

// transport returns the connections to a host:port. Clients share those that
// agree about the source port.
func (p *Pool) transport(address string, unprivileged bool) *transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := fmt.Sprint(address, unprivileged)
	t, ok := p.transports[key]
	if !ok {
		t = &transport{address: address, unprivileged: unprivileged, options: p.options, slots: make([]slot, p.options.Connections)}
		for i := range t.slots {
			t.slots[i].dialing = make(chan struct{}, 1)
		}
		t.xid.Store(rand.Uint32()) //nolint:gosec // tells calls apart, keeps nobody out
		p.transports[key] = t
	}
	return t
}

// Close closes all connections. Outstanding calls fail; later ones connect
// again.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.close()
	}
}

// transport makes calls to one address, over connections that come and go.
type transport struct {
	address      string
	unprivileged bool
	options      PoolOptions
	xid          atomic.Uint32
	next         atomic.Uint32
	reached      atomic.Bool
	slots        []slot
	// heard is when the server said something last, in Unix nanoseconds.
	heard atomic.Int64
	// down is why calls fail without being tried, for a moment after the server
	// was found silent: what is left to do for the same volume would wait as
	// long again.
	down atomic.Pointer[outage]
}

type outage struct {
	until time.Time
	cause *UnreachableError
}

// slot is the place of a connection.
type slot struct {
	dialing chan struct{} // held, by what it holds, by whoever connects
	mu      sync.Mutex
	open    *conn
}

func (s *slot) conn() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil && s.open.err() != nil {
		s.open = nil
	}
	return s.open
}

func (t *transport) close() {
	for i := range t.slots {
		if c := t.slots[i].conn(); c != nil {
			c.close(net.ErrClosed)
		}
	}
}

// connect returns a connection, which it waits for no longer than silence.
func (t *transport) connect(ctx context.Context, silence time.Duration) (*conn, error) {
	s := &t.slots[int(t.next.Add(1))%len(t.slots)]
	if c := s.conn(); c != nil {
		return c, nil
	}
	stuck := time.NewTimer(silence)
	defer stuck.Stop()
	select {
	case s.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-stuck.C:
		return nil, errSilent
	}
	defer func() { <-s.dialing }()
	if c := s.conn(); c != nil {
		return c, nil
	}
	network, err := dial(ctx, t.address, t.unprivileged, silence)
	if err != nil {
		return nil, err
	}
	t.reached.Store(true)
	c := newConn(network, t.options.IdleTimeout, func() { t.heard.Store(time.Now().UnixNano()) })
	s.mu.Lock()
	s.open = c
	s.mu.Unlock()
	return c, nil
}

// call makes a call, and makes it again when its connection is lost if that can
// do no harm. The server may have seen it as often as sent says.
func (t *transport) call(ctx context.Context, r request) (record []byte, sent int, err error) {
	xid := t.xid.Add(1)
	message, err := r.encode(xid)
	if err != nil {
		return nil, 0, err
	}
	if down := t.down.Load(); down != nil && time.Now().Before(down.until) {
		return nil, 0, down.cause
	}
	begun := time.Now()
	var (
		wait    backoff
		refused error // of the last attempt that was refused rather than ignored
	)
	for {
		patience := t.options.AnswerTimeout - t.silentSince(begun)
		if r.again {
			patience = min(patience, t.options.AnswerTimeout/2)
		}
		c, err := t.connect(ctx, patience)
		if err == nil {
			var now bool
			if record, now, err = c.roundTrip(ctx, xid, message, patience); now {
				sent++
			}
		}
		unknown := sent > 0 && !r.again
		if err != nil && !isSilence(err) {
			refused = err
		}
		switch {
		case err == nil:
			return record, sent, nil
		case ctx.Err() != nil:
			return nil, sent, t.unfinished(ctx, unknown, err)
		case t.silentSince(begun) >= t.options.AnswerTimeout, unknown && isSilence(err), !t.reached.Load() && !isSilence(err):
			return nil, sent, outcome(unknown, t.unreachable(begun, cmp.Or(refused, err)))
		case unknown:
			return nil, sent, outcome(unknown, fmt.Errorf("server %s: %w", t.address, err))
		case !wait.sleep(ctx):
			return nil, sent, t.unfinished(ctx, unknown, err)
		}
	}
}

// silentSince is for how long, at most since begun, the server has said nothing.
func (t *transport) silentSince(begun time.Time) time.Duration {
	return time.Since(later(begun, time.Unix(0, t.heard.Load())))
}

// unreachable is the error of a call for which the server could not be reached.
func (t *transport) unreachable(begun time.Time, err error) error {
	e := &UnreachableError{Server: t.address}
	var errno syscall.Errno
	switch {
	case isSilence(err):
		e.After = min(max(t.silentSince(begun).Round(time.Second/10), time.Second/10), t.options.AnswerTimeout)
	case errors.As(err, &errno):
		e.Err = errno // without the addresses, which are said already
	default:
		e.Err = err
	}
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

// backoff waits longer every time.
type backoff struct{ last time.Duration }

const (
	firstBackoff = 10 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// sleep returns false when ctx ended.
func (b *backoff) sleep(ctx context.Context) bool {
	b.last = min(max(2*b.last, firstBackoff), maxBackoff)
	timer := time.NewTimer(b.last/2 + rand.N(b.last)) //nolint:gosec // spreads retries
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
