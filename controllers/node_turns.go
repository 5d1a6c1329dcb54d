package controllers

import (
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/provisioner"
)

const (
	// maxOutageRetry is the longest time between two attempts to reach a node.
	maxOutageRetry = time.Minute
	// turnPatience is for how long an attempt to reach a node again counts as
	// under way.
	turnPatience = 30 * time.Second
)

// nodeTurns says whose turn it is to have something done on a node. A node that
// answers may occupy so many workers and no more. One that can't be reached gets
// one attempt now and then, however many volumes are on it; without that each of
// them would be read anew and reported every time. All others are set aside, and
// called for when there is a place or the node answers.
type nodeTurns struct {
	clock clock.PassiveClock
	limit int

	mu    sync.Mutex
	nodes map[string]*nodeTurn
}

// nodeTurn is the state of one node with work.
type nodeTurn struct {
	busy  int
	aside map[reconcile.Request]bool
	// since and next are zero while the node answers: when it was first not
	// reached, and when the next attempt is due.
	since, next time.Time
	// prober is the volume that is to make that attempt.
	prober reconcile.Request
}

// newNodeTurns lets each node occupy at most limit workers.
func newNodeTurns(c clock.PassiveClock, limit int) *nodeTurns {
	return &nodeTurns{clock: c, limit: max(1, limit), nodes: map[string]*nodeTurn{}}
}

// Begin returns 0 when it is the volume's turn; then End must follow. If not, the
// volume is set aside, and is to come again after the time returned at the
// latest.
func (t *nodeTurns) Begin(node string, volume reconcile.Request) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	turn := t.nodes[node]
	if turn == nil {
		turn = &nodeTurn{aside: map[reconcile.Request]bool{}}
		t.nodes[node] = turn
	}
	now := t.clock.Now()
	if turn.busy >= t.limit || now.Before(turn.next) {
		turn.aside[volume] = true
		if left := turn.next.Sub(now); left > 0 && volume == turn.prober {
			return left // it came early, for another reason, and nobody else would come in time
		}
		return spread(max(turn.next.Sub(now), maxOutageRetry))
	}
	if !turn.since.IsZero() {
		turn.next = now.Add(turnPatience)
	}
	turn.busy++
	delete(turn.aside, volume)
	return 0
}

// End ends the turn of volume. asked says whether the node was asked for
// anything, and err what came of it. It returns when the volume is to be tried
// again, 0 unless the node could not be reached: after the time that the driver
// asks for, and the later the longer the outage. And it returns the volumes
// whose turn it is now.
func (t *nodeTurns) End(node string, volume reconcile.Request, asked bool, err error) (time.Duration, []reconcile.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	turn := t.nodes[node]
	turn.busy--
	if wait, ok := provisioner.RetryAfter(err); ok {
		now := t.clock.Now()
		if turn.since.IsZero() {
			turn.since = now
		}
		wait = max(wait, min(now.Sub(turn.since)/2, maxOutageRetry))
		turn.next, turn.prober = now.Add(wait), volume
		return wait, nil
	}
	called := 1
	switch {
	case asked && !turn.since.IsZero():
		turn.since, turn.next = time.Time{}, time.Time{}
		called = len(turn.aside)
	case !turn.since.IsZero():
		turn.next = t.clock.Now() // the attempt was none
	}
	volumes := turn.take(called)
	if turn.busy == 0 && turn.since.IsZero() && len(turn.aside) == 0 {
		delete(t.nodes, node)
	}
	return 0, volumes
}

// take returns up to count of the volumes that were set aside.
func (t *nodeTurn) take(count int) []reconcile.Request {
	var volumes []reconcile.Request
	for volume := range t.aside {
		if len(volumes) == count {
			break
		}
		volumes = append(volumes, volume)
		delete(t.aside, volume)
	}
	return volumes
}

// spread adds up to half of d, so that those who wait together don't come
// together.
func spread(d time.Duration) time.Duration {
	return d + rand.N(d/2+1) //nolint:gosec // no secret
}
