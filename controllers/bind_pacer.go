package controllers

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// bindPacer decides when it is safe to bind a volume that
// kube-controller-manager has not bound yet.
//
// It guards against the lesser of the two things that can go wrong
// (docs/binding.md; volumeLag guards against the other):
// kube-controller-manager warns of a conflict when a claim
// changes between the moment it looks at it and the moment it writes its
// trigger annotation into it, its only write to an unbound claim. It looks at claims
// in the order they were made, and its rate limiter lets the writes through in
// the same order, at most 20 a second. So a claim that carries the annotation is
// safe; so is one that younger claims have overtaken, which means that
// kube-controller-manager found the volume when it looked; and when no
// annotation has been written for a while, none is on its way. What is left are
// the claims about to be next in line while annotations are being written: those
// wait.
type bindPacer struct {
	clock clock.PassiveClock
	pace  bindPace

	mu   sync.Mutex
	next uint64
	// places holds the place in line of each unbound claim that lacks the
	// annotation, and line the same places in ascending order.
	places map[types.UID]uint64
	line   []uint64
	// head is the place behind the youngest claim that got the annotation, at
	// headMoved.
	head      uint64
	headMoved time.Time
	// waiting holds the claims whose volume is visible.
	waiting map[types.UID]*waitingClaim
}

// bindPace is how patient a bindPacer is.
type bindPace struct {
	// Settle is how long a volume must have been visible in any case.
	Settle time.Duration
	// Grace is how long kube-controller-manager has for a claim that is not
	// next in line.
	Grace time.Duration
	// PodGrace is Grace for a claim that a pod waits for: kube-scheduler, which
	// has selected the node, looks once a second whether the claim is bound, for
	// the first time after a second.
	PodGrace time.Duration
	// NextInLine is how many claims kube-controller-manager may have looked at
	// without having written to them.
	NextInLine int
	// JustPassed is how many places it may be out of order.
	JustPassed uint64
	// Quiet is for how long no annotation has been written when none is on its
	// way.
	Quiet time.Duration
	// GiveUp is how long a claim waits at most.
	GiveUp time.Duration
}

// claimState is what matters about an unbound claim for when it may be bound.
type claimState int

const (
	// claimPending: kube-controller-manager has not asked for a volume yet.
	claimPending claimState = iota
	// claimSelected: nor has it for this one, which has got its node.
	claimSelected
	// claimTriggered: it has.
	claimTriggered
)

type waitingClaim struct {
	firstSeen time.Time
	// bound is when Bound was called.
	bound time.Time
}

func newBindPacer(c clock.PassiveClock, pace bindPace) *bindPacer {
	return &bindPacer{
		clock:   c,
		pace:    pace,
		places:  map[types.UID]uint64{},
		waiting: map[types.UID]*waitingClaim{},
	}
}

// Arrived puts an unbound claim without the annotation in line. It must be
// called in the order in which the API server shows the claims.
func (p *bindPacer) Arrived(claim types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrived(claim)
}

func (p *bindPacer) arrived(claim types.UID) {
	if _, known := p.places[claim]; known {
		return
	}
	p.places[claim] = p.next
	p.line = append(p.line, p.next)
	p.next++
}

// Rejoined puts a claim at the end of the line: it has got its node, and only
// now does kube-controller-manager look at it.
func (p *bindPacer) Rejoined(claim types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLine(claim)
	p.arrived(claim)
}

// Triggered notes that the claim got the annotation.
func (p *bindPacer) Triggered(claim types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	place, inLine := p.leaveLine(claim)
	if inLine && place >= p.head {
		p.head, p.headMoved = place+1, p.clock.Now()
	}
}

// Left notes that the claim is bound or gone.
func (p *bindPacer) Left(claim types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLine(claim)
}

func (p *bindPacer) leaveLine(claim types.UID) (place uint64, inLine bool) {
	if place, inLine = p.places[claim]; !inLine {
		return 0, false
	}
	delete(p.places, claim)
	if i, found := slices.BinarySearch(p.line, place); found {
		p.line = slices.Delete(p.line, i, i+1)
	}
	return place, true
}

// InLine returns the number of claims that have still to get the annotation.
func (p *bindPacer) InLine() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ahead(p.next)
}

// Wait returns how long to wait before looking again whether the claim may be
// bound; 0 when it may be now. age is how long its volume has been visible.
func (p *bindPacer) Wait(claim types.UID, state claimState, age time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, known := p.waiting[claim]
	if !known {
		w = &waitingClaim{firstSeen: p.clock.Now().Add(-age)}
		p.waiting[claim] = w
	}
	switch {
	case !w.bound.IsZero() && p.clock.Since(w.bound) < p.pace.GiveUp:
		return p.pace.GiveUp - p.clock.Since(w.bound)
	case state == claimTriggered:
		return max(0, p.pace.Settle-age)
	case age >= p.pace.GiveUp:
		return 0
	}
	p.arrived(claim) // after a restart the volume may be seen first
	grace := p.pace.Grace
	if state == claimSelected {
		grace = p.pace.PodGrace
	}
	return max(0, min(p.patience(p.places[claim], grace, age), p.pace.GiveUp-age))
}

// patience is how long a claim without the annotation waits from now on.
func (p *bindPacer) patience(place uint64, grace, age time.Duration) time.Duration {
	still := p.pace.Quiet - p.clock.Since(p.headMoved)
	if still > 0 && p.nearHead(place) {
		return max(still, grace-age)
	}
	return grace - age
}

// nearHead reports whether the annotation of a claim in that place may be on its
// way, when annotations are being written.
func (p *bindPacer) nearHead(place uint64) bool {
	if place < p.head {
		return p.head-place <= p.pace.JustPassed
	}
	return p.ahead(place) < p.pace.NextInLine
}

// ahead counts the claims between the head of the line and place.
func (p *bindPacer) ahead(place uint64) int {
	first, _ := slices.BinarySearch(p.line, p.head)
	own, _ := slices.BinarySearch(p.line, place)
	return own - first
}

// Bound notes that Berth has bound the claim. Until the cache shows it there is
// nothing to do, however often the claim comes up.
func (p *bindPacer) Bound(claim types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, known := p.waiting[claim]; known {
		w.bound = p.clock.Now()
	}
}

// Forget drops the claim. It returns how long after its volume was visible it
// was bound, if it was waiting, and whether Berth bound it.
func (p *bindPacer) Forget(claim types.UID) (waited time.Duration, byBerth bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLine(claim)
	w, known := p.waiting[claim]
	if !known {
		return 0, false
	}
	delete(p.waiting, claim)
	if w.bound.IsZero() {
		return p.clock.Since(w.firstSeen), false
	}
	return w.bound.Sub(w.firstSeen), true
}
