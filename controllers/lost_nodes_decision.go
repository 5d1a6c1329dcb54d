package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// annNodeLostSince is on the volumes of a Node that was deleted, and says when
// Berth noticed, so that a restart neither shortens the grace nor begins it
// anew.
const annNodeLostSince = "berth.storage/node-lost-since"

// lostAction is what to do with a volume because of its Node.
type lostAction int

const (
	// lostLeave: the Node is there, and nothing says otherwise.
	lostLeave lostAction = iota
	// lostMark: record on the volume that its Node was deleted.
	lostMark
	// lostUnmark: the Node is back; take that record away.
	lostUnmark
	// lostWait: the Node may still come back.
	lostWait
	// lostReport: a claim has the volume; tell it.
	lostReport
	// lostKeep: nobody has the volume, and its policy is to keep it.
	lostKeep
	// lostDrop: the volume would be reclaimed, were there a Node to do it on; let
	// the object go.
	lostDrop
)

// lostNode is what is known of a Node that volumes are on.
type lostNode struct {
	// Present says that the Node exists. Whether it is Ready does not matter: a
	// node that is down is waited for, for ever.
	Present bool
	// Since is when it was found to be deleted.
	Since time.Time
	// Grace is how long it has to come back.
	Grace time.Duration
}

// left returns how much of the grace is left at now.
func (n lostNode) left(now time.Time) time.Duration {
	return n.Grace - now.Sub(n.Since)
}

// decideLost says what to do with volume, which is on node. next is what
// decideVolume says of it, and claim the claim that it refers to by name, nil
// when there is none. To drop a volume all of these must come from the API
// server, not from a cache.
//
// Storage is never touched: should the machine come back under another name, or
// later, its directories are orphans with their markers, and nothing is lost.
func decideLost(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, next volumeAction, node lostNode, now time.Time) lostAction {
	_, marked := volume.Annotations[annNodeLostSince]
	switch {
	case node.Present && marked:
		return lostUnmark
	case node.Present:
		return lostLeave
	case !marked:
		return lostMark
	case node.left(now) > 0:
		return lostWait
	case next == volumeReclaim || next == volumeUndo:
		return lostDrop
	case claim != nil && isFor(volume, claim):
		return lostReport
	}
	return lostKeep
}

// isFor reports whether volume was made for claim, and claim has no other.
func isFor(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref := volume.Spec.ClaimRef
	return ref != nil && ref.UID == claim.UID && !losesClaim(volume, claim)
}

// lostSince returns when the Node of volumes was found to be deleted: the
// earliest time that one of them is marked with, now when none is. A mark that
// can't be read, or is ahead of the clock, counts as now.
func lostSince(volumes []*corev1.PersistentVolume, now time.Time) time.Time {
	since := now
	for _, volume := range volumes {
		at, err := time.Parse(time.RFC3339, volume.Annotations[annNodeLostSince])
		if err == nil && at.Before(since) {
			since = at
		}
	}
	return since
}
