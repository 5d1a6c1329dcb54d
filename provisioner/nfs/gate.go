package nfs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/nfs/client"
)

const (
	// gatePlaces is how many calls to one server are under way at most. It is
	// half of what the controllers work on at a time, so that one server that
	// goes silent leaves room for others until the gate closes.
	gatePlaces = 16
	// stall is for how long no call may end before those that wait for a place
	// are sent away.
	stall = time.Second / 2
	// reopenMin and reopenMax bound the time between two attempts to find a
	// silent server back.
	reopenMin = time.Second
	reopenMax = 10 * time.Second
)

// gate stands before a server. It is open while the server answers. When it
// does not, the gate is closed, except for one call now and then.
type gate struct {
	clock  clock.Clock
	places chan struct{}

	mu sync.Mutex
	// closed is why the gate is closed; nil while it is open.
	closed error
	// failures counts the attempts that have failed in a row.
	failures int
	// nextTry is when the next attempt may be made.
	nextTry time.Time
	// inside counts the calls under way.
	inside int
	// progress is when a call ended last, or when the first one came in.
	progress time.Time
	// changed is closed, and replaced, whenever the gate opens or closes.
	changed chan struct{}
}

func newGate(c clock.Clock) *gate {
	return &gate{clock: c, places: make(chan struct{}, gatePlaces), changed: make(chan struct{})}
}

// through calls f when there is a place, and keeps the books on whether the
// server answers. It fails with a provisioner.UnavailableError when it does not.
//
// A call that has not ended after patience is given up with the error that
// silent makes. Then f goes on by itself, in its place: nothing can call off a
// system call on a mount whose server is silent.
func through[T any](ctx context.Context, g *gate, patience time.Duration, silent func() error, f func(context.Context) (T, error)) (T, error) {
	var none T
	if err := g.enter(ctx); err != nil {
		return none, err
	}
	type outcome struct {
		value T
		err   error
	}
	result := make(chan outcome, 1)
	go func() {
		defer g.leave()
		value, err := f(ctx)
		result <- outcome{value, err}
	}()
	timer := g.clock.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-result:
		return r.value, g.settle(r.err)
	case <-timer.C():
		return none, g.settle(silent())
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.progress = g.clock.Now()
	<-g.places
}

func (g *gate) come() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside++; g.inside == 1 {
		g.progress = g.clock.Now()
	}
}

// enter takes a place, unless the gate is closed or closes meanwhile. It waits
// for one as long as calls end.
func (g *gate) enter(ctx context.Context) error {
	for {
		closed, changed := g.look()
		if closed != nil {
			return closed
		}
		select {
		case g.places <- struct{}{}:
			g.come()
			return nil
		default:
		}
		idle := g.idle()
		if idle >= stall {
			return &provisioner.UnavailableError{
				RetryAfter: g.jitter(stall),
				Err:        fmt.Errorf("%d operations are under way, and none has ended for %s", gatePlaces, idle.Round(time.Second/10)),
			}
		}
		timer := g.clock.NewTimer(stall - idle)
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

// look returns why the gate is closed, and a channel that tells when that
// changes. To one caller at a time a gate that was closed long enough looks
// open.
func (g *gate) look() (error, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		return nil, g.changed
	}
	now := g.clock.Now()
	if wait := g.nextTry.Sub(now); wait > 0 {
		return &provisioner.UnavailableError{RetryAfter: g.jitter(wait), Err: g.closed}, nil
	}
	g.nextTry = now.Add(g.delayLocked())
	return nil, g.changed
}

func (g *gate) idle() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clock.Since(g.progress)
}

// settle learns from how a call ended.
func (g *gate) settle(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.clock.Now()
	switch {
	case errors.Is(err, client.ErrBusy):
		return &provisioner.UnavailableError{RetryAfter: g.jitter(reopenMax), Err: err}
	case errors.Is(err, client.ErrUnreachable):
		err = briefly(err)
		g.failures++
		if g.closed == nil {
			g.announceLocked()
		}
		g.closed = err
		delay := g.delayLocked()
		g.nextTry = now.Add(delay)
		return &provisioner.UnavailableError{RetryAfter: g.jitter(delay), Err: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err // says nothing about the server
	}
	if g.closed != nil {
		g.closed, g.failures = nil, 0
		g.announceLocked()
	}
	return err
}

// briefly leaves of an error nothing but which server does not answer: what was
// asked of it, and what failed after that, does not matter any more.
func briefly(err error) error {
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		return unreachable
	}
	return err
}

// delayLocked is the time between two attempts.
func (g *gate) delayLocked() time.Duration {
	delay := reopenMin
	for i := 1; i < g.failures && delay < reopenMax; i++ {
		delay *= 2
	}
	return min(delay, reopenMax)
}

// jitter spreads over time those who were sent away together.
func (g *gate) jitter(d time.Duration) time.Duration {
	return d + rand.N(d/2+time.Second) //nolint:gosec // nothing secret about it
}

func (g *gate) announceLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}
