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
	NextInLine: 2,
	GiveUp:     5 * time.Second,
}

func newTestPacer() (*bindPacer, *clocktesting.FakePassiveClock) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	return newBindPacer(clock, testPace), clock
}

// line has volumes 1 to n wait, in this order, without the trigger annotation.
func line(p *bindPacer, n int) {
	for i := range n {
		p.Wait(volumeUID(i+1), false)
	}
}

func volumeUID(i int) types.UID { return types.UID(fmt.Sprintf("volume-%d", i)) }

func expectWait(t *testing.T, p *bindPacer, volume int, annotated bool, want time.Duration) {
	t.Helper()
	if got := p.Wait(volumeUID(volume), annotated); got != want {
		t.Errorf("Wait(volume %d, annotated %v) = %s, want %s", volume, annotated, got, want)
	}
}

func TestAnnotatedVolumeSettlesOnly(t *testing.T) {
	p, clock := newTestPacer()
	expectWait(t, p, 1, true, testPace.Settle)
	clock.SetTime(clock.Now().Add(testPace.Settle - time.Millisecond))
	expectWait(t, p, 1, true, time.Millisecond)
	clock.SetTime(clock.Now().Add(time.Millisecond))
	expectWait(t, p, 1, true, 0)
}

func TestVolumeFarFromItsTurnWaitsTheGrace(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 3)
	expectWait(t, p, 3, false, testPace.Grace)
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 3, false, 0)
}

func TestVolumesNextInLineWaitForTheAnnotation(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 3)
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 1, false, testPace.GiveUp-testPace.Grace)
	expectWait(t, p, 2, false, testPace.GiveUp-testPace.Grace)
}

func TestAnnotationEndsTheWaitAtOnceWhenSettled(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 1)
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 1, true, 0)
}

func TestBinderGivesUpWaitingForAControllerManagerThatIsDown(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 3)
	clock.SetTime(clock.Now().Add(testPace.GiveUp))
	for volume := 1; volume <= 3; volume++ {
		expectWait(t, p, volume, false, 0)
	}
}

func TestLineMovesUpWhenOneIsAnnotated(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 3)
	p.Wait(volumeUID(1), true)
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 3, false, testPace.GiveUp-testPace.Grace)
}

func TestLineMovesUpWhenOneIsForgotten(t *testing.T) {
	p, clock := newTestPacer()
	line(p, 3)
	p.Forget(volumeUID(2))
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 3, false, testPace.GiveUp-testPace.Grace)
}

func TestAnnotatedNewcomersDoNotStandInLine(t *testing.T) {
	p, clock := newTestPacer()
	p.Wait(volumeUID(8), true)
	p.Wait(volumeUID(9), true)
	line(p, 2)
	clock.SetTime(clock.Now().Add(testPace.Grace))
	expectWait(t, p, 2, false, testPace.GiveUp-testPace.Grace)
}

func TestAnnotationOnceSeenStays(t *testing.T) {
	p, clock := newTestPacer()
	p.Wait(volumeUID(1), true)
	clock.SetTime(clock.Now().Add(testPace.Settle))
	expectWait(t, p, 1, false, 0) // an older state of the claim, from a cache
}

func TestForgetTellsHowLongTheVolumeWaited(t *testing.T) {
	p, clock := newTestPacer()
	p.Wait(volumeUID(1), false)
	clock.SetTime(clock.Now().Add(time.Second))
	if got := p.Forget(volumeUID(1)); got != time.Second {
		t.Errorf("Forget = %s, want 1s", got)
	}
	if got := p.Forget(volumeUID(1)); got != 0 {
		t.Errorf("Forget of a volume that does not wait = %s, want 0", got)
	}
}

func TestForgottenVolumesStartAfresh(t *testing.T) {
	p, clock := newTestPacer()
	p.Wait(volumeUID(1), true)
	clock.SetTime(clock.Now().Add(time.Hour))
	p.Forget(volumeUID(1))
	expectWait(t, p, 1, true, testPace.Settle)
}

func TestPacerKeepsNothingOfForgottenVolumes(t *testing.T) {
	p, _ := newTestPacer()
	line(p, 50)
	for i := range 50 {
		if i%2 == 0 {
			p.Wait(volumeUID(i+1), true)
		}
		p.Forget(volumeUID(i + 1))
	}
	if len(p.waiting) != 0 || len(p.unannotated) != 0 {
		t.Errorf("%d volumes and %d places in line are left: a leak", len(p.waiting), len(p.unannotated))
	}
}
