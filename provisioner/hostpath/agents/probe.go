package agents

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
)

const (
	// trusted is for how long an agent that has answered is called without being
	// probed first.
	trusted = 2 * time.Second
	// probesAtOnce is how many probes are under way at most, silentProbesAtOnce how
	// many to agents that were silent before, beside those. No worker waits for
	// them; each that is not answered costs a connection for some seconds.
	probesAtOnce       = 256
	silentProbesAtOnce = 64
	// briefly is for how long every caller waits for a probe, counted from its
	// beginning. An agent that is well answers within that.
	briefly = 100 * time.Millisecond
	// patiently is for how long some wait, should an agent be slow.
	patiently = time.Second / 2
	// patientCallers is how many these are, over all agents. It is a quarter of
	// what a controller works on at a time.
	patientCallers = 8
)

// probe finds out whether an agent answers, in the background: callers wait for it
// a moment and no longer. So agents that do not answer, however many there are,
// can't hold all those who have something to do on other nodes.
type probe struct {
	began time.Time
	// silent says that the agent was silent before.
	silent bool
	// done is closed at the end, after err was set.
	done chan struct{}
	err  error
}

// prove makes sure that the agent has answered just now. It fails when it does not
// answer, or not soon.
func (a *agent) prove(ctx context.Context, method string) error {
	p := a.probing() //nolint:contextcheck // a probe goes on for others when its first caller has gone
	if p == nil {
		return nil
	}
	if method == csi.Controller_ListVolumes_FullMethodName {
		// Who looks at all nodes has nobody else wait, and wants to see them all.
		select {
		case <-p.done:
			return p.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if !a.await(ctx, p, briefly) && !p.silent {
		select {
		case a.all.patient <- struct{}{}:
			a.await(ctx, p, patiently)
			<-a.all.patient
		default:
		}
	}
	select {
	case <-p.done:
		return p.err
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &provisioner.UnavailableError{
		RetryAfter: patiently + rand.N(patiently), //nolint:gosec // nothing secret about it
		Err:        a.problem(fmt.Errorf("%w: it has not said yet that it is there", hostpath.ErrNotAsked)),
		Premature:  !p.silent,
	}
}

// probing returns the probe that callers have to wait for, a new one if need be,
// and nil when the agent has answered just now.
func (a *agent) probing() *probe {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.probe != nil {
		return a.probe
	}
	now := a.all.options.Clock.Now()
	if !a.silent && !a.answered.IsZero() && now.Sub(a.answered) < trusted {
		return nil
	}
	a.probe = &probe{began: now, silent: a.silent, done: make(chan struct{})}
	go a.run(a.probe)
	return a.probe
}

// run makes a probe.
func (a *agent) run(p *probe) {
	places := a.all.probes
	if p.silent {
		places = a.all.silentProbes
	}
	places <- struct{}{}
	err := a.invoke(context.Background(), csi.Identity_Probe_FullMethodName, &csi.ProbeRequest{}, &csi.ProbeResponse{})
	<-places
	if _, unavailable := provisioner.RetryAfter(err); unavailable {
		p.err = err // any other comes from an agent that is there
	}
	a.mu.Lock()
	a.probe = nil
	a.mu.Unlock()
	close(p.done)
}

// await waits until the probe is over, but no longer than until so long after it
// began, and reports whether it is.
func (a *agent) await(ctx context.Context, p *probe, patience time.Duration) bool {
	timer := a.all.options.Clock.NewTimer(patience - a.all.options.Clock.Since(p.began))
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C():
	case <-ctx.Done():
	}
	return false
}
