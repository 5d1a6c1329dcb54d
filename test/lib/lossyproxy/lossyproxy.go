// Package lossyproxy stands between a client and a server of ONC RPC over TCP,
// and does to their calls what networks and failovers do: it loses some, delays
// some, and resets connections. What it does is drawn from a seed.
package lossyproxy

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Faults are how likely each thing is to happen to a record, which is a call or
// a reply.
type Faults struct {
	// Lose drops the record and leaves the connection as it is.
	Lose float64
	// Reset drops the record and all that is under way, and closes the
	// connection.
	Reset float64
	// Delay holds the record back for up to LongestDelay; others overtake it. It
	// is delivered even if the sender has hung up meanwhile.
	Delay        float64
	LongestDelay time.Duration
}

// Counts say how often each thing has happened.
type Counts struct{ Records, Lost, Resets, Delayed int }

// Proxy is a proxy before one server.
type Proxy struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	random *rand.Rand
	faults Faults
	counts Counts
}

// New starts a proxy before target, a host:port, that ends with t.
func New(t testing.TB, target string, seed uint64, faults Faults) *Proxy {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p := &Proxy{listener: listener, target: target, random: rand.New(rand.NewPCG(seed, 0)), faults: faults} //nolint:gosec // to be repeated
	go p.accept()
	return p
}

// Port is where the proxy listens, at 127.0.0.1.
func (p *Proxy) Port() uint16 {
	return uint16(p.listener.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
}

// Counts returns what has happened so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Calm makes the proxy harmless from now on.
func (p *Proxy) Calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = Faults{}
}

func (p *Proxy) accept() {
	for {
		outer, err := p.listener.Accept()
		if err != nil {
			return
		}
		inner, err := net.Dial("tcp", p.target) //nolint:noctx // it ends with the listener's connections
		if err != nil {
			_ = outer.Close()
			continue
		}
		l := &link{proxy: p, ends: [2]net.Conn{outer, inner}}
		go l.carry(outer, inner)
		go l.carry(inner, outer)
	}
}

// fate is what becomes of a record.
type fate struct {
	lost, reset bool
	delay       time.Duration
}

func (p *Proxy) draw() fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.Records++
	switch x, f := p.random.Float64(), p.faults; {
	case x < f.Lose:
		p.counts.Lost++
		return fate{lost: true}
	case x < f.Lose+f.Reset:
		p.counts.Resets++
		return fate{reset: true}
	case x < f.Lose+f.Reset+f.Delay:
		p.counts.Delayed++
		return fate{delay: time.Duration(p.random.Int64N(int64(f.LongestDelay)))}
	}
	return fate{}
}

// link is a connection of a client, and the one to the server that belongs to it.
type link struct {
	proxy *Proxy
	ends  [2]net.Conn
}

func (l *link) close() {
	for _, end := range l.ends {
		_ = end.Close()
	}
}

// carry brings records from one end to the other. When one end hangs up, the
// other one still gets what is delayed.
func (l *link) carry(from, to net.Conn) {
	defer l.close()
	var delayed sync.WaitGroup
	defer delayed.Wait()
	for {
		record, err := readRecord(from)
		if err != nil {
			return
		}
		switch f := l.proxy.draw(); {
		case f.lost:
		case f.reset:
			l.close()
			return
		case f.delay > 0:
			delayed.Add(1)
			time.AfterFunc(f.delay, func() {
				defer delayed.Done()
				_, _ = to.Write(record)
			})
		default:
			if _, err := to.Write(record); err != nil {
				return
			}
		}
	}
}

// readRecord reads the fragments of a record, with their marks.
func readRecord(r io.Reader) (record []byte, _ error) {
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		word := binary.BigEndian.Uint32(mark[:])
		fragment := make([]byte, word&^(1<<31))
		if _, err := io.ReadFull(r, fragment); err != nil {
			return nil, err
		}
		record = append(append(record, mark[:]...), fragment...)
		if word>>31 == 1 {
			return record, nil
		}
	}
}
