package controllers

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/provisioner"
)

func named(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
}

var errDown = &provisioner.UnavailableError{RetryAfter: 5 * time.Second, Err: errors.New("no route to host")}

// TestOneVolumeOfAnUnreachableNodeIsTriedAtATime: however many there are, and
// the others are called for as soon as it gets an answer.
func TestOneVolumeOfAnUnreachableNodeIsTriedAtATime(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	turns := newNodeTurns(clock, 16)
	due := map[reconcile.Request]time.Time{}
	for i := range 1000 {
		due[named(fmt.Sprintf("volume-%d", i))] = clock.Now()
	}
	attempts := 0
	const minutes = 30
	for ; clock.Now().Before(time.Unix(0, 0).Add(minutes * time.Minute)); clock.SetTime(clock.Now().Add(time.Second)) {
		for volume, at := range due {
			if clock.Now().Before(at) {
				continue
			}
			wait := turns.Begin("down", volume)
			if wait == 0 {
				attempts++
				wait, _ = turns.End("down", volume, true, errDown)
			}
			if wait < 5*time.Second || wait > 3*time.Minute {
				t.Fatalf("%s is to wait %s", volume, wait)
			}
			due[volume] = clock.Now().Add(wait)
		}
	}
	if attempts < minutes/2 || attempts > 3*minutes {
		t.Errorf("%d attempts in %d minutes", attempts, minutes)
	}
	if wait := turns.Begin("up", named("other")); wait != 0 {
		t.Errorf("another node's volume is to wait %s", wait)
	}
	clock.SetTime(clock.Now().Add(time.Hour))
	if wait := turns.Begin("down", named("volume-0")); wait != 0 {
		t.Fatalf("an hour later the next attempt is to wait %s", wait)
	}
	wait, called := turns.End("down", named("a"), true, nil)
	if wait != 0 || len(called) < 998 {
		t.Errorf("%d volumes are called for when the node is back, want all that wait", len(called))
	}
	if wait := turns.Begin("down", named("volume-1")); wait != 0 {
		t.Errorf("a volume of a node that is back is to wait %s", wait)
	}
}

// TestNodeOccupiesNoMoreThanItsShareOfWorkers, and whoever leaves calls for the
// next.
func TestNodeOccupiesNoMoreThanItsShareOfWorkers(t *testing.T) {
	turns := newNodeTurns(clocktesting.NewFakePassiveClock(time.Unix(0, 0)), 2)
	for _, name := range []string{"a", "b"} {
		if wait := turns.Begin("node", named(name)); wait != 0 {
			t.Fatalf("%s is to wait %s", name, wait)
		}
	}
	for _, name := range []string{"c", "d"} {
		if wait := turns.Begin("node", named(name)); wait == 0 {
			t.Fatalf("%s does not wait", name)
		}
	}
	for range 2 {
		wait, called := turns.End("node", named("a"), true, errors.New("disk on fire"))
		if wait != 0 || len(called) != 1 {
			t.Fatalf("wait %s, called %v, want one", wait, called)
		}
		if wait := turns.Begin("node", called[0]); wait != 0 {
			t.Fatalf("%s, which was called for, is to wait %s", called[0], wait)
		}
	}
	for range 2 {
		if _, called := turns.End("node", named("a"), true, nil); called != nil {
			t.Errorf("%v are called for twice", called)
		}
	}
	if len(turns.nodes) > 0 {
		t.Error("a node without work is remembered")
	}
}

// TestAnAttemptThatAskedNothingSaysNothing: the volume may be gone by the time.
func TestAnAttemptThatAskedNothingSaysNothing(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	turns := newNodeTurns(clock, 16)
	turns.Begin("down", named("a"))
	wait, _ := turns.End("down", named("a"), true, errDown)
	turns.Begin("down", named("b")) // set aside
	turns.Begin("down", named("c")) // set aside
	clock.SetTime(clock.Now().Add(wait))
	turns.Begin("down", named("a"))
	if wait := turns.Begin("down", named("d")); wait == 0 {
		t.Error("two attempts at a time")
	}
	_, called := turns.End("down", named("a"), false, nil)
	if len(called) != 1 {
		t.Fatalf("%v are called for, want one", called)
	}
	if wait := turns.Begin("down", called[0]); wait != 0 {
		t.Errorf("the next attempt is to wait %s", wait)
	}
}

// TestAnAttemptThatDoesNotEndIsFollowedByAnother, should the driver know no
// timeout.
func TestAnAttemptThatDoesNotEndIsFollowedByAnother(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	turns := newNodeTurns(clock, 16)
	turns.Begin("down", named("a"))
	wait, _ := turns.End("down", named("a"), true, errDown)
	clock.SetTime(clock.Now().Add(wait))
	turns.Begin("down", named("a"))
	clock.SetTime(clock.Now().Add(turnPatience))
	if wait := turns.Begin("down", named("b")); wait != 0 {
		t.Errorf("the next attempt is to wait %s", wait)
	}
}

// TestVolumeThatComesEarlyStillMakesItsAttempt: somebody may write to the volume
// while it waits.
func TestVolumeThatComesEarlyStillMakesItsAttempt(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	turns := newNodeTurns(clock, 16)
	turns.Begin("down", named("a"))
	wait, _ := turns.End("down", named("a"), true, errDown)
	clock.SetTime(clock.Now().Add(time.Second))
	early := turns.Begin("down", named("a"))
	if early != wait-time.Second {
		t.Fatalf("it came a second early and is to wait %s, want %s", early, wait-time.Second)
	}
	if other := turns.Begin("down", named("b")); other < maxOutageRetry {
		t.Errorf("another volume is to wait %s", other)
	}
	clock.SetTime(clock.Now().Add(early))
	if again := turns.Begin("down", named("a")); again != 0 {
		t.Errorf("when its time has come it is to wait %s", again)
	}
}
