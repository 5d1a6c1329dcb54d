package controllers

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestWorkThatAVolumeMakes(t *testing.T) {
	const retain = corev1.PersistentVolumeReclaimRetain
	another := newClaim(func(c *corev1.PersistentVolumeClaim) { c.UID = "another" })
	unclaimed := func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil }
	reserved := func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "" }
	for rule, tt := range map[string]struct {
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		want   volumeWork
	}{
		"Pending, its claim waits for it":                  {newOurVolume(corev1.VolumePending, retain), newClaim(), workNone},
		"Bound to its claim":                               {newOurVolume(corev1.VolumeBound, retain), newClaim(boundTo("pvc-claim-uid")), workNone},
		"Bound, its claim is gone":                         {newOurVolume(corev1.VolumeBound, retain), nil, workWrite},
		"Bound, its claim was made anew":                   {newOurVolume(corev1.VolumeBound, retain), another, workWrite},
		"Pending, its claim is gone":                       {newOurVolume(corev1.VolumePending, retain), nil, workWrite},
		"Pending, its claim is bound elsewhere":            {newOurVolume(corev1.VolumePending, retain), newClaim(boundTo("static")), workWrite},
		"Released, its claim is gone":                      {newOurVolume(corev1.VolumeReleased, retain), nil, workNone},
		"Released, its claim was made anew":                {newOurVolume(corev1.VolumeReleased, retain), another, workRead},
		"Failed, its claim was made anew":                  {newOurVolume(corev1.VolumeFailed, retain), another, workRead},
		"Released, its claim is bound elsewhere":           {newOurVolume(corev1.VolumeReleased, retain), newClaim(boundTo("static")), workNone},
		"new, for nobody":                                  {newOurVolume("", retain, unclaimed), nil, workWrite},
		"Pending, for nobody":                              {newOurVolume(corev1.VolumePending, retain, unclaimed), nil, workWrite},
		"Released, and its claimRef was removed":           {newOurVolume(corev1.VolumeReleased, retain, unclaimed), nil, workWrite},
		"Available, for nobody":                            {newOurVolume(corev1.VolumeAvailable, retain, unclaimed), nil, workNone},
		"Available, for whoever has a name":                {newOurVolume(corev1.VolumeAvailable, retain, reserved), newClaim(), workNone},
		"Pending, for whoever has a name":                  {newOurVolume(corev1.VolumePending, retain, reserved), newClaim(), workWrite},
		"Bound, and the uid in its claimRef was taken out": {newOurVolume(corev1.VolumeBound, retain, reserved), newClaim(), workWrite},
	} {
		t.Run(rule, func(t *testing.T) {
			if got := workOf(tt.volume, tt.claim); got != tt.want {
				t.Errorf("workOf = %d, want %d", got, tt.want)
			}
		})
	}
}

// lagTest drives a volumeLag by a fake clock, and plays the cache.
type lagTest struct {
	*testing.T
	*volumeLag
	clock   *clocktesting.FakePassiveClock
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
}

func newLagTest(t *testing.T) *lagTest {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	l := &lagTest{
		T: t, volumeLag: newVolumeLag(clock, newLagPace(DefaultBindSilence)), clock: clock,
		claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
	}
	l.claimOf = func(v *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
		if v.Spec.ClaimRef == nil {
			return nil
		}
		return l.claims[v.Spec.ClaimRef.Name]
	}
	l.volumesOf = func(claim types.NamespacedName) (found []*corev1.PersistentVolume) {
		for _, v := range l.volumes {
			if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Name == claim.Name {
				found = append(found, v)
			}
		}
		return found
	}
	l.serves = func(v *corev1.PersistentVolume) bool { return v.Spec.ClaimRef != nil }
	l.leads = true
	l.Ready()
	l.ClusterLives(0)
	return l
}

func (l *lagTest) pass(d time.Duration) { l.clock.SetTime(l.clock.Now().Add(d)) }

// busy passes time in which kube-controller-manager does something now and then.
func (l *lagTest) busy(d time.Duration) {
	for ; d > 0; d -= time.Second {
		l.pass(min(d, time.Second))
		l.ClusterLives(0)
	}
}

// made shows a volume that was made for the claim of its name.
func (l *lagTest) made(name string, phase corev1.PersistentVolumePhase) *corev1.PersistentVolume {
	uid := types.UID(name + "-uid")
	v := newOurVolume(phase, corev1.PersistentVolumeReclaimRetain, func(v *corev1.PersistentVolume) {
		v.Name = name
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: uid}
	})
	l.claims[name] = newClaim(func(c *corev1.PersistentVolumeClaim) { c.Name, c.UID = name, uid })
	if phase == corev1.VolumeBound {
		l.claims[name].Spec.VolumeName = name
	}
	return l.show(v)
}

func (l *lagTest) show(v *corev1.PersistentVolume) *corev1.PersistentVolume {
	l.volumes[v.Name] = v
	l.VolumeAdded(v, false)
	return v
}

// static shows a volume that nobody has claimed.
func (l *lagTest) static(name string) *corev1.PersistentVolume {
	return l.show(newOurVolume(corev1.VolumePending, corev1.PersistentVolumeReclaimRetain, func(v *corev1.PersistentVolume) {
		v.Name, v.Spec.ClaimRef = name, nil
	}))
}

// writes has kube-controller-manager write a volume's phase.
func (l *lagTest) writes(v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) {
	after := v.DeepCopy()
	after.Status.Phase = phase
	l.volumes[v.Name] = after
	l.VolumeChanged(v, after)
}

// deletes has a claim go, and come again under its name when anew.
func (l *lagTest) deletes(name string, anew bool) {
	delete(l.claims, name)
	if anew {
		l.claims[name] = newClaim(func(c *corev1.PersistentVolumeClaim) { c.Name, c.UID = name, "anew" })
	}
	l.ClaimMoved(types.NamespacedName{Namespace: "ns", Name: name})
}

func (l *lagTest) waits(v *corev1.PersistentVolume, want bool) {
	l.Helper()
	l.pass(l.pace.Look) // what depends on all signs is looked at anew
	if wait, why := l.Wait(v, 0); wait > 0 != want {
		l.Errorf("%s waits %s (%s), want it to wait: %v", v.Name, wait, why, want)
	}
}

func TestQuietClusterHasReadAVolumeWhenItLives(t *testing.T) {
	l := newLagTest(t)
	v := l.made("new", corev1.VolumePending)
	l.pass(time.Second)
	l.waits(v, true) // who knows?
	l.ClusterLives(0)
	l.waits(v, false)
}

func TestVolumeWaitsForOlderOnesWhoseClaimsAreGone(t *testing.T) {
	l := newLagTest(t)
	old := l.made("old", corev1.VolumeBound)
	l.deletes("old", false)
	v := l.made("new", corev1.VolumePending)
	l.busy(5 * time.Second)
	l.waits(v, true)
	l.writes(old, corev1.VolumeReleased)
	l.waits(v, false)
}

func TestSignThatIsMuchYoungerThanTheVolumeDoesNotCount(t *testing.T) {
	l := newLagTest(t)
	l.made("old", corev1.VolumeBound)
	v := l.made("new", corev1.VolumePending)
	l.pass(l.pace.Margin / 2)
	l.deletes("old", false)
	l.ClusterLives(0)
	l.waits(v, true) // about at the same time: it may have been first

	l.made("old2", corev1.VolumeBound)
	l.writes(l.volumes["old"], corev1.VolumeReleased)
	w := l.made("new2", corev1.VolumePending)
	l.busy(l.pace.Margin * 2)
	l.deletes("old2", false)
	l.ClusterLives(0)
	l.waits(w, false)
}

func TestWhileThereIsABacklogYoungerSignsCountToo(t *testing.T) {
	l := newLagTest(t)
	l.made("old", corev1.VolumeBound)
	l.made("old2", corev1.VolumeBound)
	l.deletes("old", false)
	v := l.made("new", corev1.VolumePending)
	l.pass(10 * l.pace.Margin)
	l.deletes("old2", false) // a resync may have put it before the new one
	l.writes(l.volumes["old"], corev1.VolumeReleased)
	l.waits(v, true)
	l.writes(l.volumes["old2"], corev1.VolumeReleased)
	l.waits(v, false)
}

func TestVolumesThatAreToBecomeAvailableAreASign(t *testing.T) {
	l := newLagTest(t)
	s := l.static("static")
	v := l.made("new", corev1.VolumePending)
	l.busy(5 * time.Second)
	l.waits(v, true)
	l.writes(s, corev1.VolumeAvailable)
	l.waits(v, false)
}

// costing has n volumes cost the worker a read each.
func (l *lagTest) costing(n int) {
	for i := range n {
		l.reads[fmt.Sprint(i)] = true
	}
}

func TestAYoungerVolumeThatWasReadProvesTheOlder(t *testing.T) {
	l := newLagTest(t)
	l.costing(100)
	v := l.made("new", corev1.VolumePending)
	younger := l.made("younger", corev1.VolumePending)
	l.waits(v, true)
	l.writes(younger, corev1.VolumeBound)
	l.waits(v, false)
}

// Somebody else may have written the younger one's phase: a tool that repairs, or
// restores.
func TestAYoungerVolumeDoesNotOutweighAnOlderOneThatWaits(t *testing.T) {
	l := newLagTest(t)
	for i := range 2 * fewSigns {
		l.static(fmt.Sprint("static", i))
	}
	v := l.made("new", corev1.VolumePending)
	l.writes(l.static("younger"), corev1.VolumeAvailable)
	for range 20 {
		l.pass(time.Second)
		l.ClusterLives(0)
		l.waits(v, true)
	}
}

func TestWhatBerthWritesProvesNothing(t *testing.T) {
	l := newLagTest(t)
	l.made("old", corev1.VolumeBound)
	l.deletes("old", false)
	v := l.made("new", corev1.VolumePending)
	younger := l.made("younger", corev1.VolumePending)
	l.Binds(younger.Name)
	l.writes(younger, corev1.VolumeBound)
	l.waits(v, true)
}

func TestWhatAnotherReplicaOfBerthWritesProvesNothing(t *testing.T) {
	l := newLagTest(t)
	l.leads = false
	v := l.made("new", corev1.VolumePending)
	l.pass(time.Second)
	l.writes(l.made("younger", corev1.VolumePending), corev1.VolumeBound) // by the leader
	l.waits(v, true)                                                      // this replica leads now
	l.writes(l.made("youngest", corev1.VolumePending), corev1.VolumeBound)
	l.waits(v, false)
}

func TestReadsAreNotTakenForDeath(t *testing.T) {
	l := newLagTest(t)
	l.costing(100)
	v := l.made("new", corev1.VolumePending)
	l.waits(v, true)
	l.pass(l.pace.Silence)
	l.waits(v, true)
	l.pass(100 * l.pace.Read)
	l.waits(v, false)
}

func TestWhatBerthWritesIsNoSignOfLife(t *testing.T) {
	l := newLagTest(t)
	v := l.made("new", corev1.VolumePending)
	other := l.made("other", corev1.VolumePending)
	l.pass(time.Second)
	l.Binds(other.Name)
	l.writes(other, corev1.VolumeBound)
	l.waits(v, true)
}

func TestReleasedVolumesOfClaimsMadeAnewTakeTime(t *testing.T) {
	l := newLagTest(t)
	for i := range 100 {
		name := string(rune('a'+i/26)) + string(rune('a'+i%26))
		old := l.made(name, corev1.VolumeBound)
		l.deletes(name, true)
		l.writes(old, corev1.VolumeReleased)
	}
	v := l.made("new", corev1.VolumePending)
	l.busy(5 * time.Second)
	l.waits(v, true) // 100 reads at 20 a second
	l.pass(time.Second)
	l.waits(v, false)
	if wait, _ := l.Wait(v, 200); wait == 0 {
		t.Error("the tokens that other writes take are not reckoned")
	}
	l.VolumeGone("aa")
	if got := len(l.reads); got != 99 {
		t.Errorf("%d volumes cost a read, want 99", got)
	}
}

// What kube-controller-manager writes in the meantime takes tokens as well as what
// it is about to write.
func TestWritesThatWereSeenTakeTimeFromReads(t *testing.T) {
	l := newLagTest(t)
	l.costing(100)
	v := l.made("new", corev1.VolumePending)
	l.Wait(v, 200)
	for range 8 {
		l.pass(time.Second)
		l.ClusterLives(20)
	}
	l.pass(l.pace.Look)
	if wait, _ := l.Wait(v, 40); wait == 0 {
		t.Error("8 s, of which 8 were spent on other things, are taken to be enough for 100 reads")
	}
}

// So does what it binds of others', by their phases.
func TestBindsOfOthersTakeTimeFromReads(t *testing.T) {
	l := newLagTest(t)
	var foreign []*corev1.PersistentVolume
	for i := range 60 {
		foreign = append(foreign, l.made(fmt.Sprint("foreign-", i), corev1.VolumePending))
	}
	l.costing(100)
	v := l.made("new", corev1.VolumePending)
	for _, f := range foreign {
		l.pass(100 * time.Millisecond)
		l.writes(f, corev1.VolumeBound)
	}
	l.waits(v, true)
}

// Up to Kubernetes 1.36 volumes that are to be deleted cost its client a read each,
// behind which the worker's reads wait.
func TestReleasedVolumesOfOthersDelayReads(t *testing.T) {
	l := newLagTest(t)
	aside := func(n int) {
		for i := range n {
			l.show(newOurVolume(corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, func(v *corev1.PersistentVolume) {
				v.Name = fmt.Sprint("released-", i)
				v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: v.Name, UID: "gone"}
			}))
		}
	}
	aside(100)
	v := l.made("quick", corev1.VolumePending)
	l.busy(time.Second)
	l.waits(v, false) // nobody waits for these alone
	l.costing(10)
	v = l.made("new", corev1.VolumePending)
	l.busy(3 * time.Second)
	l.waits(v, true)
	l.busy(4 * time.Second)
	l.waits(v, false)
}

// Each costs it a read and a refused write at every resync.
func TestStuckVolumesTakeTime(t *testing.T) {
	l := newLagTest(t)
	for i := range 100 {
		name := fmt.Sprint("stuck-", i)
		l.made(name, corev1.VolumeBound)
		l.deletes(name, false)
	}
	l.pass(2 * l.pace.Margin)
	l.writes(l.made("y", corev1.VolumePending), corev1.VolumeBound)
	l.waits(l.made("p", corev1.VolumePending), true)
	l.pass(l.pace.Stuck)
	if _, stuck := l.Known(0); stuck != 100 {
		t.Fatalf("%d are stuck", stuck)
	}
	v := l.made("new", corev1.VolumePending)
	l.busy(time.Second)
	l.waits(v, true)
}

// A new volume that was passed over may have to wait for a token.
func TestVolumeThatWaitsForATokenIsNotStuck(t *testing.T) {
	l := newLagTest(t)
	l.static("static")
	l.writes(l.made("y", corev1.VolumePending), corev1.VolumeBound)
	v := l.made("new", corev1.VolumePending)
	l.waits(v, true)
	l.busy(2 * time.Second)
	l.pass(l.pace.Look)
	if wait, _ := l.Wait(v, 600); wait == 0 {
		t.Error("600 writes are due, and it is stuck after two seconds")
	}
}

// A kube-controller-manager that is down has done what it was seen to do.
func TestWhatADeadClusterHasSpentIsOver(t *testing.T) {
	l := newLagTest(t)
	l.costing(10)
	v := l.made("new", corev1.VolumePending)
	for range 10 {
		l.pass(time.Second)
		l.ClusterLives(20)
	}
	l.waits(v, true)
	l.pass(l.pace.Silence + time.Minute)
	l.waits(v, false)
}

// A volume that is made anew under its name while nobody looks is another one.
func TestVolumeMadeAnewIsSeenAnew(t *testing.T) {
	l := newLagTest(t)
	v := l.made("new", corev1.VolumeBound)
	anew := v.DeepCopy()
	anew.UID, anew.Status.Phase = "anew", corev1.VolumePending
	l.volumes["new"] = anew
	l.claims["new"].Spec.VolumeName = ""
	l.VolumeChanged(v, anew)
	l.waits(anew, true)
	l.busy(time.Second)
	l.waits(anew, false)
}

// In a pause nothing was read.
func TestPauseIsNoTimeToRead(t *testing.T) {
	l := newLagTest(t)
	l.costing(100)
	v := l.made("new", corev1.VolumePending)
	l.pass(9 * time.Second)
	l.ClusterLives(0)
	l.waits(v, true)
	l.busy(6 * time.Second)
	l.waits(v, false)
}

// Somebody brings volumes and claims that are bound to each other: each costs it
// a write, and is none of Berth's binds.
func TestVolumesThatAreBroughtBoundAreASign(t *testing.T) {
	l := newLagTest(t)
	l.serves = func(v *corev1.PersistentVolume) bool { return v.Name == "ours" }
	l.claims["brought"] = newClaim(func(c *corev1.PersistentVolumeClaim) { c.Name, c.UID, c.Spec.VolumeName = "brought", "uid", "brought" })
	brought := l.show(newOurVolume("", corev1.PersistentVolumeReclaimRetain, func(v *corev1.PersistentVolume) {
		v.Name = "brought"
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "brought", UID: "uid"}
	}))
	v := l.made("new", corev1.VolumePending)
	l.busy(time.Second)
	l.ClaimMoved(types.NamespacedName{Namespace: "ns", Name: "brought"})
	l.waits(v, true)
	l.writes(brought, corev1.VolumeBound)
	l.busy(time.Second)
	l.waits(v, false)

	ours := l.made("ours", corev1.VolumePending)
	l.Binds("ours")
	l.claims["ours"].Spec.VolumeName = "ours"
	l.ClaimMoved(types.NamespacedName{Namespace: "ns", Name: "ours"})
	l.waits(v, false)
	l.writes(ours, corev1.VolumeBound)
	if len(l.signs) > 0 {
		t.Errorf("%d signs are left", len(l.signs))
	}
}

// The binder may see a volume before it was shown its place.
func TestVolumeThatWasNotShownIsNotProven(t *testing.T) {
	l := newLagTest(t)
	l.costing(100)
	v := newOurVolume(corev1.VolumePending, corev1.PersistentVolumeReclaimRetain, func(v *corev1.PersistentVolume) { v.Name = "new" })
	if wait, _ := l.Wait(v, 0); wait == 0 {
		t.Error("it does not wait")
	}
	older := l.made("older", corev1.VolumePending)
	l.show(v)
	l.writes(older, corev1.VolumeBound)
	l.waits(v, true)
}

// Lost once more, much later, is Lost for the first time.
func TestClaimThatIsLostAgainMuchLaterIsNotRepairedAtOnce(t *testing.T) {
	l := newLagTest(t)
	l.CalledLost("v", time.Second)
	l.pass(time.Hour)
	if wait := l.CalledLost("v", time.Second); wait != l.pace.Repair {
		t.Errorf("it is put right after %s", wait)
	}
}

func TestLongLagIsLeftToTheCluster(t *testing.T) {
	l := newLagTest(t)
	l.costing(300)
	v := l.made("new", corev1.VolumePending)
	l.busy(time.Minute)
	l.waits(v, true) // however old it is: kube-controller-manager binds it
	younger := l.made("younger", corev1.VolumePending)
	l.writes(younger, corev1.VolumeBound)
	l.waits(v, false)
}

func TestManyVolumesTakeTimeAtAResync(t *testing.T) {
	l := newLagTest(t)
	l.total = 20_000
	v := l.made("new", corev1.VolumePending)
	l.busy(3 * time.Second)
	l.waits(v, true)
	l.pass(1100 * time.Millisecond)
	l.waits(v, false)
}

func TestSignThatStaysWhileYoungerVolumesAreReadIsStuck(t *testing.T) {
	for kind, tt := range map[string]struct {
		refused  func(l *lagTest) // makes a volume whose phase a policy forbids to write
		patience func(l *lagTest) time.Duration
	}{
		"a new volume that nobody has claimed": {
			func(l *lagTest) { l.static("refused") },
			func(l *lagTest) time.Duration { return l.pace.NewStuck },
		},
		"a volume whose claim is gone": {
			func(l *lagTest) { l.made("refused", corev1.VolumeBound); l.deletes("refused", false) },
			func(l *lagTest) time.Duration { return l.pace.Stuck },
		},
	} {
		t.Run(kind, func(t *testing.T) {
			l := newLagTest(t)
			tt.refused(l)
			l.pass(2 * l.pace.Margin)
			v := l.made("new", corev1.VolumePending)
			l.pass(time.Minute)
			l.ClusterLives(0)
			l.waits(v, true)
			l.writes(v, corev1.VolumeBound) // kube-controller-manager got to it
			w := l.made("next", corev1.VolumePending)
			l.pass(l.pace.Look)
			l.ClusterLives(0)
			l.waits(w, true)
			l.pass(tt.patience(l))
			l.waits(w, false)
			if _, stuck := l.Known(0); stuck != 1 {
				t.Errorf("%d signs are stuck, want 1", stuck)
			}
			l.VolumeGone("refused")
			if _, stuck := l.Known(0); stuck != 0 {
				t.Errorf("%d signs are stuck after it has gone, want 0", stuck)
			}
		})
	}
}

func TestSilentClusterIsTakenForDeadUntilItLives(t *testing.T) {
	l := newLagTest(t)
	l.pass(time.Hour) // nobody asked anything of it
	v := l.made("new", corev1.VolumePending)
	l.waits(v, true)
	l.pass(l.pace.Silence)
	l.waits(v, false)
	l.Settled(v.Name)
	w := l.made("next", corev1.VolumePending)
	l.waits(w, false)
	l.ClusterLives(0)
	x := l.made("last", corev1.VolumePending)
	l.waits(x, true)
}

// When it comes back it may go on where it was: it was frozen, or cut off.
func TestDeadClusterThatHasOlderVolumesToDealWithIsWaitedFor(t *testing.T) {
	for what, burden := range map[string]func(*lagTest){
		"a volume whose claim is gone": func(l *lagTest) { l.made("old", corev1.VolumeBound); l.deletes("old", false) },
		"a volume that is new":         func(l *lagTest) { l.static("static") },
		"many reads":                   func(l *lagTest) { l.costing(400) },
	} {
		t.Run(what, func(t *testing.T) {
			l := newLagTest(t)
			burden(l)
			v := l.made("new", corev1.VolumePending)
			l.waits(v, true)
			l.pass(10 * l.pace.Silence)
			l.waits(v, true)
		})
	}
}

// One that has started anew has read all volumes at once, and may bind any of
// them before it has dealt with older ones.
func TestManyVolumesThatArePassedOverAreNotStuckWhileTheyGo(t *testing.T) {
	l := newLagTest(t)
	var statics []*corev1.PersistentVolume
	for i := range 2 * fewSigns {
		statics = append(statics, l.static(fmt.Sprint("static", i)))
	}
	l.writes(l.made("read", corev1.VolumePending), corev1.VolumeBound)
	v := l.made("new", corev1.VolumePending)
	for _, static := range statics {
		l.pass(l.pace.NewStuck / 2)
		l.waits(v, true)
		l.writes(static, corev1.VolumeAvailable)
	}
	l.ClusterLives(0)
	l.waits(v, false)
	if _, stuck := l.Known(0); stuck != 0 {
		t.Errorf("%d signs are stuck", stuck)
	}
}

func TestLostClaimTeachesTheLag(t *testing.T) {
	l := newLagTest(t)
	lost := l.made("lost", corev1.VolumeBound)
	if wait := l.CalledLost(lost.Name, 3*time.Second); wait != l.pace.Repair {
		t.Errorf("the claim is put right after %s, want %s", wait, l.pace.Repair)
	}
	v := l.made("new", corev1.VolumePending)
	l.busy(5 * time.Second)
	l.waits(v, true)
	l.pass(time.Second)
	l.waits(v, false)
	l.pass(10 * l.pace.Forget)
	if lag, _ := l.Known(0); lag > 10*time.Millisecond {
		t.Errorf("after %s the lag is still %s", 10*l.pace.Forget, lag)
	}
}

func TestClaimThatWasLostForLongTeachesNothing(t *testing.T) {
	l := newLagTest(t)
	l.CalledLost("lost", time.Hour) // another leader saw it happen
	if lag, _ := l.Known(0); lag != 0 {
		t.Errorf("the lag is %s", lag)
	}
}

func TestRepairsBackOff(t *testing.T) {
	l := newLagTest(t)
	lost := l.made("lost", corev1.VolumeBound)
	for _, want := range []time.Duration{20 * time.Second, 40 * time.Second, 80 * time.Second} {
		if wait := l.CalledLost(lost.Name, time.Second); wait != want {
			t.Errorf("the claim is put right after %s, want %s", wait, want)
		}
		l.pass(want)
		if wait := l.CalledLost(lost.Name, time.Second); wait != 0 {
			t.Errorf("the claim is put right after %s more", wait)
		}
		l.Repaired(lost.Name)
	}
}

func TestLagKeepsNothingOfVolumesThatAreGone(t *testing.T) {
	l := newLagTest(t)
	for _, phase := range []corev1.PersistentVolumePhase{corev1.VolumePending, corev1.VolumeBound} {
		v := l.made("v"+string(phase), phase)
		l.Wait(v, 0)
		l.Binds(v.Name)
		l.CalledLost(v.Name, time.Second)
		l.deletes(v.Name, false)
		l.VolumeGone(v.Name)
	}
	if n := len(l.fresh) + len(l.waiting) + len(l.ours) + len(l.signs) + len(l.reads) + len(l.lost) + l.total; n != 0 {
		t.Errorf("%d entries are left: %+v", n, l.volumeLag)
	}
}

// TestASignOfLifeWakesThoseThatOnlyWaitForIt, once, and nobody else.
func TestASignOfLifeWakesThoseThatOnlyWaitForIt(t *testing.T) {
	l := newLagTest(t)
	woken := map[string]int{}
	l.Wakes(func(volume string) { woken[volume]++ })
	for _, name := range []string{"ready", "bound", "gone"} {
		volume := l.made(name, corev1.VolumePending)
		l.pass(time.Second / 2)
		if wait, _ := l.Wait(volume, 0); wait == 0 {
			t.Fatalf("%s is bound though nobody knows whether kube-controller-manager lives", name)
		}
	}
	l.made("not-asked-about", corev1.VolumePending)
	l.Settled("bound")
	l.VolumeGone("gone")
	l.ClusterLives(0)
	if len(woken) != 1 || woken["ready"] != 1 {
		t.Errorf("woken: %v", woken)
	}
	if wait, why := l.Wait(l.volumes["ready"], 0); wait != 0 {
		t.Errorf("waits %s since %s", wait, why)
	}
}

// cached returns what the cache has of claim.
func cached(t *testing.T, claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	t.Helper()
	return transform(t, transformOf(t, &corev1.PersistentVolumeClaim{}), claim)
}

func TestWhatOnlyTheClusterWritesToClaims(t *testing.T) {
	plain := func(*corev1.PersistentVolumeClaim) {}
	asked := func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": "x"}
	}
	phase := func(p corev1.PersistentVolumeClaimPhase) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = p }
	}
	condition := func(kind corev1.PersistentVolumeClaimConditionType) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: kind, Status: corev1.ConditionTrue}}
		}
	}
	bound := boundTo("v")
	both := func(a, b func(*corev1.PersistentVolumeClaim)) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { a(c); b(c) }
	}
	unused := both(bound, condition(corev1.PersistentVolumeClaimUnused))
	larger := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests, c.Status.Capacity = sized("2Gi"), sized("1Gi")
	}
	for what, tt := range map[string]struct {
		before, after func(*corev1.PersistentVolumeClaim)
		want          bool
	}{
		"nothing":                   {plain, plain, false},
		"it asks for a volume":      {plain, asked, true},
		"it has asked before":       {asked, asked, false},
		"Lost":                      {bound, both(bound, phase(corev1.ClaimLost)), true},
		"put right":                 {both(bound, phase(corev1.ClaimLost)), bound, false},
		"bound":                     {asked, bound, false},
		"a pod uses it, or not":     {bound, unused, true},
		"it has looked before":      {unused, unused, false},
		"a larger one is asked for": {unused, both(unused, larger), false},
		"the larger one is there":   {both(unused, larger), unused, false},
		"another condition":         {plain, condition(corev1.PersistentVolumeClaimResizing), false},
	} {
		before, after := cached(t, newClaim(tt.before)), cached(t, newClaim(tt.after))
		if got, requests := byCluster(before, after); got != tt.want || requests > 0 && what == "a pod uses it, or not" {
			t.Errorf("%s: %t", what, got)
		}
	}
}
