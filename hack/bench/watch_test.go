package main

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func TestBoundIsTheFirstTimeSeen(t *testing.T) {
	b := newBoundWatch()
	see := func(phase corev1.PersistentVolumeClaimPhase) {
		b.handle(watch.Event{Type: watch.Modified, Object: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "c"}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase},
		}})
	}
	see(corev1.ClaimPending)
	if b.count() != 0 {
		t.Fatal("a pending claim counts as Bound")
	}
	see(corev1.ClaimBound)
	first := b.at("c")
	for !time.Now().After(first) { // a clock may be coarse
	}
	for range 2 {
		see(corev1.ClaimLost)
		see(corev1.ClaimLost) // another change than of the phase
		see(corev1.ClaimBound)
	}
	if again := b.at("c"); !again.Equal(first) || b.count() != 1 {
		t.Errorf("Bound at %v, then at %v, %d claims", first, again, b.count())
	}
	want := claimSeen{bound: first, phase: corev1.ClaimBound, lost: 2}
	if got := b.of("c"); got != want {
		t.Errorf("seen of the claim: %+v, want %+v", got, want)
	}
}

func TestEventCounts(t *testing.T) {
	c := &eventCounts{byReason: map[string]int{}}
	for _, e := range []struct {
		kind            watch.EventType
		reason, message string
	}{
		{watch.Added, "ProvisioningSucceeded", "ok"},
		{watch.Modified, "ProvisioningSucceeded", "ok"},
		{watch.Deleted, "ProvisioningSucceeded", "ok"},
		{watch.Added, "ClaimLost", "gone"},
		{watch.Added, "ProvisioningFailed", "Operation cannot be fulfilled: the object has been modified; please apply"},
		{watch.Added, "ProvisioningFailed", "no space"},
		{watch.Added, "Other", "the object has been modified"},
	} {
		c.handle(watch.Event{Type: e.kind, Object: &corev1.Event{Reason: e.reason, Message: e.message}})
	}
	got := c.snapshot()
	if got.total != 6 || got.lost != 1 || got.conflicts != 1 || got.byReason["ProvisioningSucceeded"] != 2 {
		t.Errorf("got %d events, %d lost, %d conflicts, %v", got.total, got.lost, got.conflicts, got.byReason)
	}
}

func TestPaceDue(t *testing.T) {
	for _, tc := range []struct {
		pace pace
		want time.Duration
	}{
		{pace{}, 0},
		{pace{rate: 20}, 500 * time.Millisecond},
		{pace{oneByOne: true}, 10 * singleInterval},
	} {
		if got := tc.pace.due(10); got != tc.want {
			t.Errorf("%+v: claim 10 is due after %s, want %s", tc.pace, got, tc.want)
		}
	}
}
