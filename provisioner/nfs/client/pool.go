package client

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// PoolOptions configures a Pool. The zero value is fine.
type PoolOptions struct {
	// IdleTimeout closes a connection without calls. The default is a minute.
	IdleTimeout time.Duration
	// AnswerTimeout is how long a server may be silent, with a call outstanding,
	// before the call fails with ErrUnreachable. After half of it a call that
	// changes nothing is made again over another connection. The default is 5
	// seconds.
	AnswerTimeout time.Duration
	// Resolver finds the addresses of servers. The default is
	// net.DefaultResolver.
	Resolver *net.Resolver
}

// Pool shares connections, one to a server, between the clients of the same
// servers.
type Pool struct {
	options PoolOptions

	mu         sync.Mutex
	transports map[string]*transport
}

// NewPool returns an empty pool.
func NewPool(options PoolOptions) *Pool {
	if options.IdleTimeout <= 0 {
		options.IdleTimeout = time.Minute
	}
	if options.AnswerTimeout <= 0 {
		options.AnswerTimeout = 5 * time.Second
	}
	return &Pool{options: options, transports: map[string]*transport{}}
}

// transport returns the connection to a host:port. Clients share it that agree
// about the source port.
func (p *Pool) transport(address string, unprivileged bool) *transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := fmt.Sprint(address, unprivileged)
	t, ok := p.transports[key]
	if !ok {
		t = &transport{address: address, unprivileged: unprivileged, options: p.options, dialing: make(chan struct{}, 1)}
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
