package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// PoolOptions configures a Pool. The zero value is fine.
type PoolOptions struct {
	// Connections is how many connections to one server are open at most. Each
	// carries many calls at once. The default is 2.
	Connections int
	// IdleTimeout closes a connection without calls. The default is a minute.
	IdleTimeout time.Duration
	// SilenceTimeout is after how long without a word a connection with
	// outstanding calls counts as lost. The default is 20 seconds.
	SilenceTimeout time.Duration
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
	if options.SilenceTimeout <= 0 {
		options.SilenceTimeout = 20 * time.Second
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

func (t *transport) connect(ctx context.Context) (*conn, error) {
	s := &t.slots[int(t.next.Add(1))%len(t.slots)]
	if c := s.conn(); c != nil {
		return c, nil
	}
	select {
	case s.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.dialing }()
	if c := s.conn(); c != nil {
		return c, nil
	}
	network, err := dial(ctx, t.address, t.unprivileged)
	if err != nil {
		return nil, err
	}
	t.reached.Store(true)
	c := newConn(network, t.options.IdleTimeout, t.options.SilenceTimeout)
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
	var wait backoff
	for {
		c, err := t.connect(ctx)
		if err == nil {
			var now bool
			if record, now, err = c.roundTrip(ctx, xid, message); now {
				sent++
			}
		}
		unknown := sent > 0 && !r.again
		switch {
		case err == nil:
			return record, sent, nil
		case ctx.Err() == nil && unknown:
			return nil, sent, fmt.Errorf("%s: %w: %w", t.address, ErrOutcomeUnknown, err)
		case ctx.Err() == nil && !t.reached.Load():
			return nil, sent, err
		case ctx.Err() != nil, !wait.sleep(ctx):
			return nil, sent, unfinished(ctx, t.address, unknown, err)
		}
	}
}

// unfinished is the error of a call whose context ended.
func unfinished(ctx context.Context, address string, unknown bool, err error) error {
	cause := ctx.Err()
	if !errors.Is(err, cause) {
		cause = fmt.Errorf("%w: %w", cause, err)
	}
	if unknown {
		cause = fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
	}
	return fmt.Errorf("%s: %w", address, cause)
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
