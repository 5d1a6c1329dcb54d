package controllers

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

var testPace = bindPace{
	Settle:     100 * time.Millisecond,
	Grace:      500 * time.Millisecond,
	PodGrace:   300 * time.Millisecond,
	NextInLine: 2,
	JustPassed: 2,
	Quiet:      400 * time.Millisecond,
	GiveUp:     5 * time.Second,
}

// pacerTest drives a bindPacer by a fake clock; claims are numbers.
type pacerTest struct {
	*testing.T
	*bindPacer
	clock *clocktesting.FakePassiveClock
	seen  map[int]time.Time
}

// look asks about a claim whose volume became visible when it was asked first.
func (p *pacerTest) look(claim int, state claimState) time.Duration {
	if _, known := p.seen[claim]; !known {
		p.seen[claim] = p.clock.Now()
	}
	return p.Wait(pacedClaim(claim), state, p.clock.Since(p.seen[claim]))
}

func newPacerTest(t *testing.T) *pacerTest {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	return &pacerTest{T: t, bindPacer: newBindPacer(clock, testPace), clock: clock, seen: map[int]time.Time{}}
}

func pacedClaim(i int) types.UID { return types.UID(fmt.Sprintf("claim-%d", i)) }

// visible has claims 1 to n arrive in this order, and their volumes be seen.
func (p *pacerTest) visible(n int) {
	for i := 1; i <= n; i++ {
		p.Arrived(pacedClaim(i))
		p.look(i, claimPending)
	}
}

func (p *pacerTest) pass(d time.Duration) { p.clock.SetTime(p.clock.Now().Add(d)) }

func (p *pacerTest) wants(claim int, state claimState, want time.Duration) {
	p.Helper()
	if got := p.look(claim, state); got != want {
		p.Errorf("Wait(claim %d, state %d) = %s, want %s", claim, state, got, want)
	}
}

func TestTriggeredClaimSettlesOnly(t *testing.T) {
	p := newPacerTest(t)
	p.wants(1, claimTriggered, testPace.Settle)
	p.pass(testPace.Settle - time.Millisecond)
	p.wants(1, claimTriggered, time.Millisecond)
	p.pass(time.Millisecond)
	p.wants(1, claimTriggered, 0)
}

func TestTriggerEndsTheWait(t *testing.T) {
	p := newPacerTest(t)
	p.visible(1)
	p.pass(testPace.Settle)
	p.Triggered(pacedClaim(1))
	p.wants(1, claimTriggered, 0)
}

func TestWithoutAnyTriggerEachWaitsTheGrace(t *testing.T) {
	p := newPacerTest(t)
	p.visible(3)
	for claim := 1; claim <= 3; claim++ {
		p.wants(claim, claimPending, testPace.Grace)
	}
	p.pass(testPace.Grace)
	for claim := 1; claim <= 3; claim++ {
		p.wants(claim, claimPending, 0)
	}
}

func TestClaimThatAPodWaitsForWaitsLess(t *testing.T) {
	p := newPacerTest(t)
	p.wants(1, claimSelected, testPace.PodGrace)
	p.wants(2, claimSelected, testPace.PodGrace)
	p.pass(testPace.PodGrace)
	p.wants(1, claimSelected, 0)
	p.Triggered(pacedClaim(1))
	p.wants(2, claimSelected, testPace.Quiet) // it is next in line all the same
}

func TestNextInLineWaitWhileTriggersAreWritten(t *testing.T) {
	p := newPacerTest(t)
	p.visible(4)
	p.pass(testPace.Grace)
	p.Triggered(pacedClaim(1))
	p.wants(2, claimPending, testPace.Quiet)
	p.wants(3, claimPending, testPace.Quiet)
	p.wants(4, claimPending, 0) // far from its turn
	p.pass(testPace.Quiet)
	p.wants(2, claimPending, 0)
	p.wants(3, claimPending, 0)
}

func TestLineMovesUpWithEachTrigger(t *testing.T) {
	p := newPacerTest(t)
	p.visible(5)
	p.pass(testPace.Grace)
	p.Triggered(pacedClaim(1))
	p.Triggered(pacedClaim(2))
	p.wants(4, claimPending, testPace.Quiet)
	p.wants(5, claimPending, 0)
}

func TestBoundClaimsDoNotStandInLine(t *testing.T) {
	p := newPacerTest(t)
	p.visible(5)
	p.pass(testPace.Grace)
	p.Triggered(pacedClaim(1))
	p.Left(pacedClaim(2))
	p.Forget(pacedClaim(3))
	p.wants(5, claimPending, testPace.Quiet)
}

func TestOvertakenClaimWaitsUntilItIsFarBehind(t *testing.T) {
	p := newPacerTest(t)
	p.visible(3)
	p.pass(testPace.Grace)
	p.Triggered(pacedClaim(3))
	p.wants(1, claimPending, 0)
	p.wants(2, claimPending, testPace.Quiet) // the writes may be out of order
	p.pass(testPace.Quiet)
	p.wants(2, claimPending, 0)
}

func TestClaimThatGetsItsNodeGoesToTheEndOfTheLine(t *testing.T) {
	p := newPacerTest(t)
	p.visible(2)
	p.pass(testPace.Grace)
	p.Triggered(pacedClaim(2))
	p.Rejoined(pacedClaim(1)) // younger ones overtook it while it waited for a pod
	p.wants(1, claimPending, testPace.Quiet)
}

func TestNobodyWaitsLongerThanGiveUp(t *testing.T) {
	p := newPacerTest(t)
	p.visible(2)
	p.pass(testPace.GiveUp - time.Millisecond)
	p.Triggered(pacedClaim(1))
	p.wants(2, claimPending, time.Millisecond)
	p.pass(time.Millisecond)
	p.wants(2, claimPending, 0)
}

func TestVolumeSeenBeforeItsClaimStandsInLine(t *testing.T) {
	p := newPacerTest(t)
	p.wants(1, claimPending, testPace.Grace)
	p.Arrived(pacedClaim(1))
	if len(p.line) != 1 {
		t.Errorf("the claim has %d places in line, want 1", len(p.line))
	}
}

func TestForgetTellsHowLongTheClaimWaitedForTheCluster(t *testing.T) {
	p := newPacerTest(t)
	p.visible(1)
	p.pass(time.Second)
	if waited, byBerth := p.Forget(pacedClaim(1)); waited != time.Second || byBerth {
		t.Errorf("Forget = %s, %v, want 1s, false", waited, byBerth)
	}
	if waited, byBerth := p.Forget(pacedClaim(1)); waited != 0 || byBerth {
		t.Errorf("Forget of a claim that does not wait = %s, %v, want 0, false", waited, byBerth)
	}
}

func TestBoundClaimIsLeftAloneUntilTheCacheShowsIt(t *testing.T) {
	p := newPacerTest(t)
	p.visible(1)
	p.pass(testPace.Grace)
	p.Bound(pacedClaim(1))
	p.pass(time.Second)
	p.wants(1, claimTriggered, testPace.GiveUp-time.Second)
	if waited, byBerth := p.Forget(pacedClaim(1)); waited != testPace.Grace || !byBerth {
		t.Errorf("Forget = %s, %v, want %s, true", waited, byBerth, testPace.Grace)
	}
}

func TestBindThatNeverShowsIsTriedAgain(t *testing.T) {
	p := newPacerTest(t)
	p.visible(1)
	p.Bound(pacedClaim(1))
	p.pass(testPace.GiveUp)
	p.wants(1, claimTriggered, 0)
}

func TestPacerKeepsNothingOfForgottenClaims(t *testing.T) {
	p := newPacerTest(t)
	p.visible(50)
	for i := 1; i <= 50; i++ {
		switch i % 3 {
		case 0:
			p.Triggered(pacedClaim(i))
		case 1:
			p.Left(pacedClaim(i))
		}
		p.Forget(pacedClaim(i))
	}
	if len(p.waiting)+len(p.places)+len(p.line) != 0 {
		t.Errorf("%d claims wait, %d have places, the line is %d long: a leak", len(p.waiting), len(p.places), len(p.line))
	}
}
