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
// Two things can go wrong (docs/binding.md). kube-controller-manager marks a
// bound claim Lost when it has not yet seen the claim's volume: so a volume
// must have been visible for a while. And it warns of a conflict when a claim
// changes while it writes its trigger annotation, its only write to an unbound
// claim, into it: so the claim should carry that annotation, or be far from its
// turn. kube-controller-manager goes through claims in about the order they were made, so
// the oldest claims without the annotation are those it is about to reach;
// the rest are not.
type bindPacer struct {
	clock clock.PassiveClock
	pace  bindPace

	mu      sync.Mutex
	next    uint64
	waiting map[types.UID]waitingVolume
	// unannotated holds the sequence numbers of the waiting volumes whose claims
	// lack the trigger annotation, in ascending order.
	unannotated []uint64
}

// bindPace is how patient a bindPacer is.
type bindPace struct {
	// Settle is how long a volume must have been visible in any case.
	Settle time.Duration
	// Grace is how long kube-controller-manager has for a claim that is far
	// from its turn.
	Grace time.Duration
	// NextInLine is how many of the oldest claims without the trigger annotation
	// kube-controller-manager may be about to reach.
	NextInLine int
	// GiveUp is how long to wait for the trigger annotation of a claim next in
	// line, should kube-controller-manager not be working at all.
	GiveUp time.Duration
}

type waitingVolume struct {
	sequence  uint64
	firstSeen time.Time
	annotated bool
}

func newBindPacer(c clock.PassiveClock, pace bindPace) *bindPacer {
	return &bindPacer{clock: c, pace: pace, waiting: map[types.UID]waitingVolume{}}
}

// Wait returns how long to wait before binding volume, 0 when it may be bound
// now. annotated says whether its claim carries the trigger annotation. The
// first call for a volume is when it became visible.
func (p *bindPacer) Wait(volume types.UID, annotated bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, known := p.waiting[volume]
	if !known {
		w = waitingVolume{sequence: p.next, firstSeen: p.clock.Now()}
		p.next++
		p.unannotated = append(p.unannotated, w.sequence)
	}
	if annotated && !w.annotated {
		w.annotated = true
		p.leaveLine(w.sequence)
	}
	p.waiting[volume] = w
	return max(0, p.patience(w)-p.clock.Since(w.firstSeen))
}

// patience is how long after its first sight w may be bound.
func (p *bindPacer) patience(w waitingVolume) time.Duration {
	if w.annotated {
		return p.pace.Settle
	}
	if position, _ := slices.BinarySearch(p.unannotated, w.sequence); position < p.pace.NextInLine {
		return p.pace.GiveUp
	}
	return p.pace.Grace
}

// Forget drops volume, and returns how long it has been waiting; 0 when it was
// not.
func (p *bindPacer) Forget(volume types.UID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, known := p.waiting[volume]
	if !known {
		return 0
	}
	delete(p.waiting, volume)
	if !w.annotated {
		p.leaveLine(w.sequence)
	}
	return p.clock.Since(w.firstSeen)
}

func (p *bindPacer) leaveLine(sequence uint64) {
	if i, found := slices.BinarySearch(p.unannotated, sequence); found {
		p.unannotated = slices.Delete(p.unannotated, i, i+1)
	}
}
