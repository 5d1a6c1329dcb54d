package gate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
)

// errSilent is what a client says of a server that does not answer.
var errSilent = errors.New("server nas:2049 did not answer within 5s")

const places = 16

// pass sends f through the gate.
func pass(g *Gate, f func(context.Context) error) error {
	if err := g.Enter(context.Background()); err != nil {
		return err
	}
	defer g.Leave()
	err := f(context.Background())
	if errors.Is(err, errSilent) {
		return g.Settle(Silent, err)
	}
	return g.Settle(Answers, err)
}

func answers(context.Context) error { return nil }

// isSilent answers with an error after the client's timeout.
func isSilent(context.Context) error {
	time.Sleep(5 * time.Second) // in a bubble: no real time passes
	return errSilent
}

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	wait, ok := provisioner.RetryAfter(err)
	if !ok || wait <= 0 || wait > 30*time.Second {
		t.Errorf("error = %v, retry after %s: want an unavailable one to be tried within 30 s", err, wait)
	}
}

func TestGateOfASilentServerSendsEverybodyAwayAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		wantUnavailable(t, pass(g, isSilent))
		start, calls := time.Now(), 0
		for range 100 {
			err := pass(g, func(context.Context) error { calls++; return nil })
			wantUnavailable(t, err)
			if !errors.Is(err, errSilent) {
				t.Errorf("%v does not say why", err)
			}
		}
		if calls > 0 || time.Since(start) > 0 {
			t.Errorf("%d calls in %s", calls, time.Since(start))
		}
	})
}

func TestGateLetsOneCallThroughNowAndThenAndOpensWhenItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		wantUnavailable(t, pass(g, isSilent))
		probes := 0
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(100 * time.Millisecond) {
			wantUnavailable(t, pass(g, func(ctx context.Context) error { probes++; return isSilent(ctx) }))
		}
		if probes < 4 || probes > 12 {
			t.Errorf("%d probes in a minute", probes)
		}
		time.Sleep(ReopenMax)
		if err := pass(g, answers); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if err := pass(g, answers); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestOnlyOneCallerIsTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		wantUnavailable(t, pass(g, isSilent))
		time.Sleep(ReopenMin)
		inside := make(chan struct{})
		go func() { _ = pass(g, func(context.Context) error { <-inside; return nil }) }()
		synctest.Wait()
		wantUnavailable(t, pass(g, answers))
		close(inside)
		synctest.Wait()
		if err := pass(g, answers); err != nil {
			t.Error(err)
		}
	})
}

func TestCallersThatWaitLeaveWhenTheServerIsFoundSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		start := time.Now()
		left := make(chan time.Duration, 100)
		for range 100 {
			go func() {
				wantUnavailable(t, pass(g, isSilent))
				left <- time.Since(start)
			}()
		}
		early := 0
		for range 100 {
			if waited := <-left; waited <= Stall {
				early++
			} else if waited > 5*time.Second {
				t.Errorf("a caller waited for %s", waited)
			}
		}
		if early != 100-places {
			t.Errorf("%d callers left within %s, want all but %d", early, Stall, places)
		}
	})
}

func TestASlowServerServesEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		done := make(chan error, 200)
		for range 200 {
			go func() {
				done <- pass(g, func(context.Context) error { time.Sleep(Stall - time.Millisecond); return nil })
			}()
		}
		for range 200 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRefusalsDoNotCloseTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		refusal := errors.New("permission denied")
		for range 100 {
			if err := pass(g, func(context.Context) error { return refusal }); !errors.Is(err, refusal) {
				t.Fatal(err)
			}
		}
		if err := pass(g, answers); err != nil {
			t.Error(err)
		}
	})
}

func TestCallsThatFailTogetherAreOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		for range places {
			go func() { wantUnavailable(t, pass(g, isSilent)) }()
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		time.Sleep(ReopenMin)
		if err := pass(g, answers); err != nil {
			t.Errorf("no attempt after %s: %v", ReopenMin, err)
		}
	})
}

// TestAGateIsOpenOnceTheServerHasAnswered: an attempt that is due does not open it.
func TestAGateIsOpenOnceTheServerHasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(clock.RealClock{}, places)
		wantUnavailable(t, pass(g, isSilent))
		time.Sleep(2 * ReopenMax)
		if g.Open() || g.Closed() != nil {
			t.Errorf("open %t, closed %v, when an attempt is due", g.Open(), g.Closed())
		}
		inside := 0
		err := pass(g, func(context.Context) error { inside = g.Inside(); return nil })
		if err != nil || !g.Open() || inside != 1 || g.Inside() != 0 {
			t.Errorf("error %v, open %t, %d inside, then %d", err, g.Open(), inside, g.Inside())
		}
	})
}
