// Package gate keeps callers from waiting for a server that does not answer.
//
// A Gate stands before one server. While the server answers, the gate bounds how
// many calls are under way. When it does not, everybody is sent away at once
// with a provisioner.UnavailableError, except for one call now and then, which
// finds out whether the server is back.
package gate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
)

const (
	// Stall is for how long no call may end before those that wait for a place
	// are sent away.
	Stall = time.Second / 2
	// ReopenMin is the time between the first two attempts to find a silent
	// server back.
	ReopenMin = time.Second
	// ReopenMax bounds the time between two attempts.
	ReopenMax = 10 * time.Second
)

// Verdict is what the end of a call says about the server.
type Verdict int

const (
	// Answers means that the server answered, whatever it said.
	Answers Verdict = iota
	// Silent means that the server can't be reached, or does not answer.
	Silent
	// Busy means that the server can't do this now; others may be served.
	Busy
	// Unknown means that the caller gave up, which says nothing.
	Unknown
)

// Gate stands before a server. It is open while the server answers.
type Gate struct {
	clock  clock.Clock
	places chan struct{}

	mu sync.Mutex
	// closed is why the gate is closed; nil while it is open.
	closed error
	// failures counts the attempts that have failed in a row.
	failures int
	// nextTry is when the next attempt may be made.
	nextTry time.Time
	// trying says that an attempt is under way.
	trying bool
	// inside counts the calls under way.
	inside int
	// progress is when a call ended last, or when the first one came in.
	progress time.Time
	// changed is closed, and replaced, whenever the gate opens or closes.
	changed chan struct{}
}

// New returns an open gate, with places for that many calls at a time.
func New(c clock.Clock, places int) *Gate {
	return &Gate{clock: c, places: make(chan struct{}, places), changed: make(chan struct{})}
}

// Enter takes a place, unless the gate is closed or closes meanwhile. It waits
// for one as long as calls end. Whoever has a place calls Settle with what came
// of the call, and Leave when the call is over.
func (g *Gate) Enter(ctx context.Context) error {
	for {
		changed, err := g.look()
		if err != nil {
			return err
		}
		select {
		case g.places <- struct{}{}:
			g.come()
			return nil
		default:
		}
		idle := g.idle()
		if idle >= Stall {
			return &provisioner.UnavailableError{
				RetryAfter: jitter(Stall),
				Err:        fmt.Errorf("%d operations are under way, and none has ended for %s", cap(g.places), idle.Round(time.Second/10)),
			}
		}
		timer := g.clock.NewTimer(Stall - idle)
		select {
		case g.places <- struct{}{}:
			timer.Stop()
			g.come()
			return nil
		case <-changed:
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// Leave gives the place back.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.progress = g.clock.Now()
	<-g.places
}

// Closed returns why nobody may enter now, and nil when somebody may.
func (g *Gate) Closed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closedLocked()
}

// Open reports whether the server answered when it was called last. Unlike with
// Closed, a gate at which an attempt is due is not open.
func (g *Gate) Open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed == nil
}

// Inside returns how many calls are under way.
func (g *Gate) Inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside
}

// Settle learns from how a call ended, and returns the error to give to the
// caller: err, as a provisioner.UnavailableError when the server is Silent or
// Busy.
func (g *Gate) Settle(v Verdict, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch v {
	case Busy:
		return &provisioner.UnavailableError{RetryAfter: jitter(ReopenMax), Err: err}
	case Silent:
		return g.silentLocked(err)
	case Unknown:
		return err
	}
	if g.closed != nil {
		g.closed, g.failures, g.trying = nil, 0, false
		g.announceLocked()
	}
	return err
}

// silentLocked closes the gate. What counts is how many attempts have failed, not
// how many calls were under way when the server went silent.
func (g *Gate) silentLocked(err error) error {
	switch {
	case g.closed == nil:
		g.failures = 1
		g.announceLocked()
	case g.trying:
		g.failures++
	default:
		return &provisioner.UnavailableError{RetryAfter: jitter(g.delayLocked()), Err: err}
	}
	g.closed, g.trying = err, false
	delay := g.delayLocked()
	g.nextTry = g.clock.Now().Add(delay)
	return &provisioner.UnavailableError{RetryAfter: jitter(delay), Err: err}
}

// look returns why the gate is closed, and a channel that tells when that
// changes. To one caller at a time a gate that was closed long enough looks
// open.
func (g *Gate) look() (<-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.closedLocked(); err != nil {
		return nil, err
	}
	if g.closed != nil {
		g.trying = true
		g.nextTry = g.clock.Now().Add(g.delayLocked())
	}
	return g.changed, nil
}

func (g *Gate) closedLocked() error {
	wait := g.nextTry.Sub(g.clock.Now())
	if g.closed == nil || wait <= 0 {
		return nil
	}
	return &provisioner.UnavailableError{RetryAfter: jitter(wait), Err: g.closed}
}

func (g *Gate) come() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside++; g.inside == 1 {
		g.progress = g.clock.Now()
	}
}

func (g *Gate) idle() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clock.Since(g.progress)
}

// delayLocked is the time between two attempts.
func (g *Gate) delayLocked() time.Duration {
	delay := ReopenMin
	for i := 1; i < g.failures && delay < ReopenMax; i++ {
		delay *= 2
	}
	return min(delay, ReopenMax)
}

// jitter spreads over time those who were sent away together.
func jitter(d time.Duration) time.Duration {
	return d + rand.N(d/2+time.Second) //nolint:gosec // nothing secret about it
}

func (g *Gate) announceLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}
