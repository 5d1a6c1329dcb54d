package controllers

import (
	"math"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// volumeLag knows how far kube-controller-manager has come with volumes, as
// far as that can be seen from outside.
//
// kube-controller-manager calls a bound claim Lost whose volume is not in the
// store of its PersistentVolume controller. That store is not a watch's: one
// worker fills it, volume by volume, in the order in which volumes were made or
// changed, and it waits for a token of a client of 20 requests a second
// whenever a volume needs a request (pkg/controller/volume/persistentvolume,
// pv_controller_base.go, volumeWorker and storeVolumeUpdate; pv_controller.go,
// syncVolume and syncBoundClaim). So a volume may be bound by somebody else only
// when the worker has read it. What tells:
//
//   - A volume that the worker still has to write to (its claim is gone, or it
//     is to become Available) was not reached. Younger volumes wait behind it.
//   - A younger volume that the worker has written to, or has bound, was
//     reached, and with it all that are older.
//   - Some volumes cost the worker requests, or time, and show nothing: those
//     are reckoned.
//   - A claim that was called Lost all the same says how much was overlooked.
//   - Silence says nothing at all: while kube-controller-manager gives no sign
//     of life, nobody knows what it has read.
//
// It holds little: volumes that wait to be bound, volumes that are yet without a
// phase, and signs.
type volumeLag struct {
	clock clock.PassiveClock
	pace  lagPace
	// claimOf returns the claim that a volume refers to by name, nil when there is
	// none, and volumesOf the volumes that refer to a claim. Both read a cache, and
	// are called while mu is held: what they return is no older than the last event.
	claimOf   func(*corev1.PersistentVolume) *corev1.PersistentVolumeClaim
	volumesOf func(claim types.NamespacedName) []*corev1.PersistentVolume
	// serves reports whether a volume is of a driver of ours, so that another
	// replica of Berth may have written its phase.
	serves func(*corev1.PersistentVolume) bool
	// wake has a volume looked at again. It is called while mu is held.
	wake func(volume string)

	mu    sync.Mutex
	ready bool   // all that was there when the watch began is known
	leads bool   // this replica binds
	next  uint64 // place of the next new volume
	total int    // volumes there are

	// fresh are the volumes that nobody has given a phase yet.
	fresh map[string]sighting
	// waiting are those of ours that wait to be bound.
	waiting map[string]sighting
	// last are those of waiting that only wait for a sign of life.
	last map[string]bool
	// ours are those of fresh whose phase Berth writes.
	ours map[string]bool
	// signs are the volumes that the worker still has to write to.
	signs map[string]*lagSign
	// reads are the volumes that cost the worker a read at every resync, aside those
	// that cost one which it does not wait for.
	reads, aside map[string]bool
	// spent counts the requests that kube-controller-manager was seen to make with the
	// client of the worker, and due those that are known to follow.
	spent, due int

	// read is the youngest volume that the worker is known to have read.
	read sighting
	// alive is when kube-controller-manager last gave a sign of life. It is taken
	// for dead when it is silent for too long, until it gives one. resumed is when it
	// last gave one after a silence: what it has read in that time nobody knows.
	alive, resumed time.Time
	dead           bool

	// progress is when the worker last did what a sign was waiting for.
	progress time.Time

	learned   time.Duration
	learnedAt time.Time
	lost      map[string]*lostClaim

	// What depends on all signs and all waiting volumes, as of looked.
	looked time.Time
	oldest time.Time // the oldest sign that counts; zero for none
	stuck  int       // signs that do not count
	asked  time.Time // the oldest volume that waits; zero for none
}

// sighting is when the watch showed a volume for the first time, and its
// place among all that it showed: volumes come in the order in which they
// were made, for kube-controller-manager too.
type sighting struct {
	place uint64
	at    time.Time
	spent int // what volumeLag.spent was
	// behind says that there were signs already. Every volume may have been in the
	// worker's queue then, in front of this one: a resync puts all of them there,
	// and what is in the queue joins it no second time. So whichever claim goes from
	// now on may keep the worker from this volume.
	behind bool
}

// sighted returns what a volume is known by that the watch shows now.
func (l *volumeLag) sighted() sighting {
	seen := l.now(l.next)
	l.next++
	return seen
}

// now is the sighting of a volume with that place.
func (l *volumeLag) now(place uint64) sighting {
	return sighting{place: place, at: l.clock.Now(), spent: l.spent, behind: len(l.signs) > l.stuck}
}

type lagSign struct {
	since time.Time
	// place is that of a new volume, 0 for others: their order in the worker's
	// queue is not that in which their claims went.
	place uint64
	// passed is when it was first noticed that the worker has read a volume that
	// was made later.
	passed time.Time
}

type lostClaim struct {
	due  time.Time
	wait time.Duration
	told time.Time // when it was called Lost last
}

func newVolumeLag(c clock.PassiveClock, pace lagPace) *volumeLag {
	return &volumeLag{
		clock:   c,
		pace:    pace,
		wake:    func(string) {},
		next:    1,
		fresh:   map[string]sighting{},
		waiting: map[string]sighting{},
		last:    map[string]bool{},
		ours:    map[string]bool{},
		signs:   map[string]*lagSign{},
		reads:   map[string]bool{},
		aside:   map[string]bool{},
		lost:    map[string]*lostClaim{},
	}
}

// Wakes sets what has a volume looked at again when kube-controller-manager gives
// the sign of life that it waits for.
func (l *volumeLag) Wakes(wake func(volume string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake = wake
}

// Ready notes that all volumes and claims that were there when the watch began
// have been shown.
func (l *volumeLag) Ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready = true
}

// volumeWork is what a volume has kube-controller-manager's worker do.
type volumeWork int

const (
	// workNone: nothing that takes a request.
	workNone volumeWork = iota
	// workRead: a live read of the claim at every resync, which nobody can see.
	workRead
	// workAside: a read of the volume at every resync, up to Kubernetes 1.36, by
	// somebody else with the worker's client.
	workAside
	// workWrite: it has to write the volume's phase.
	workWrite
)

// workOf says what volume has kube-controller-manager's worker do. claim is the
// claim that volume refers to by name, nil when there is none.
// (pv_controller.go, syncVolume.)
func workOf(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) volumeWork {
	ref, phase := volume.Spec.ClaimRef, volume.Status.Phase
	ended := phase == corev1.VolumeReleased || phase == corev1.VolumeFailed
	switch {
	case ref == nil || ref.UID == "":
		if phase == corev1.VolumeAvailable {
			return workNone
		}
		return workWrite
	case claim != nil && claim.UID == ref.UID:
		if claim.Spec.VolumeName != "" && claim.Spec.VolumeName != volume.Name && !ended {
			return workWrite
		}
		return workNone
	case !ended:
		return workWrite
	case claim != nil:
		return workRead
	case volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return workAside
	}
	return workNone
}

// isBoundWithoutPhase reports whether volume and claim are bound to each other, so
// that all that kube-controller-manager still has to write is the volume's phase.
// Berth's own binds look like that for a moment.
func isBoundWithoutPhase(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref := volume.Spec.ClaimRef
	return isFresh(volume) && ref != nil && claim != nil && claim.UID == ref.UID && claim.Spec.VolumeName == volume.Name
}

// VolumeAdded notes a volume that the watch shows for the first time. known says
// that it was there before the watch began.
func (l *volumeLag) VolumeAdded(volume *corev1.PersistentVolume, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	if isFresh(volume) {
		s := l.sight(volume.Name)
		if known {
			s.place, s.behind = 0, true // lists have no order
			l.fresh[volume.Name] = s
		}
		if !l.serves(volume) && isBoundWithoutPhase(volume, l.claimOf(volume)) { // somebody brought it
			l.signals(volume.Name)
		}
	}
	l.note(volume)
}

// VolumeChanged notes that a volume is another than before.
func (l *volumeLag) VolumeChanged(before, after *corev1.PersistentVolume) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before.UID != after.UID {
		l.forget(after.Name) // made anew while nobody looked
	}
	if isFresh(after) && l.fresh[after.Name].at.IsZero() {
		l.sight(after.Name)
	}
	if before.UID == after.UID && before.Status.Phase != after.Status.Phase {
		l.phaseMoved(before, after)
	}
	l.note(after)
}

// phaseMoved draws what can be drawn from a phase that somebody wrote: that was
// kube-controller-manager, unless it was Berth.
func (l *volumeLag) phaseMoved(before, after *corev1.PersistentVolume) {
	name := after.Name
	seen, wasFresh := l.fresh[name]
	byBerth := l.ours[name] || !l.leads && after.Status.Phase == corev1.VolumeBound && l.serves(after)
	if !isFresh(after) {
		delete(l.fresh, name)
		delete(l.ours, name)
	}
	if byBerth {
		return
	}
	l.lives()
	l.spent += requestsFor(after.Status.Phase)
	if _, waited := l.signs[name]; waited {
		l.progress = l.alive
	}
	if wasFresh && isFresh(before) {
		l.proves(seen)
	}
}

// requestsFor is what it costs kube-controller-manager's PersistentVolume controller
// to bring a volume into a phase: a bound one has a claim that is written to twice,
// the claim of a released one is looked for.
func requestsFor(phase corev1.PersistentVolumePhase) int {
	switch phase {
	case corev1.VolumeBound:
		return 3
	case corev1.VolumeReleased:
		return 2
	default:
		return 1
	}
}

func isFresh(volume *corev1.PersistentVolume) bool {
	return volume.Status.Phase == "" || volume.Status.Phase == corev1.VolumePending
}

// note brings up to date what volume is a sign of.
func (l *volumeLag) note(volume *corev1.PersistentVolume) {
	claim := l.claimOf(volume)
	work := workOf(volume, claim)
	mark(l.reads, volume.Name, work == workRead)
	mark(l.aside, volume.Name, work == workAside)
	if work == workWrite {
		l.signals(volume.Name)
	} else if !isBoundWithoutPhase(volume, claim) {
		l.dealtWith(volume.Name)
	}
}

func mark(set map[string]bool, name string, in bool) {
	if in {
		set[name] = true
	} else {
		delete(set, name)
	}
}

// signals notes that the worker has to write to a volume.
func (l *volumeLag) signals(name string) {
	if l.signs[name] != nil {
		return
	}
	l.signs[name] = &lagSign{since: l.clock.Now(), place: l.fresh[name].place}
	if l.oldest.IsZero() {
		l.looked = time.Time{}
	}
}

// dealtWith notes that the worker has not to write to a volume any more.
func (l *volumeLag) dealtWith(name string) {
	sign := l.signs[name]
	if sign == nil {
		return
	}
	delete(l.signs, name)
	if l.oldest.IsZero() || !sign.since.After(l.oldest) {
		l.looked = time.Time{}
	}
}

// ClaimMoved notes that a claim came, went, or got its volume.
func (l *volumeLag) ClaimMoved(claim types.NamespacedName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, volume := range l.volumesOf(claim) {
		l.note(volume)
	}
}

// VolumeGone notes that a volume is gone.
func (l *volumeLag) VolumeGone(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	l.forget(name)
}

// Forget drops a volume that the cache has no more.
func (l *volumeLag) Forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(name)
}

func (l *volumeLag) forget(name string) {
	delete(l.fresh, name)
	delete(l.waiting, name)
	delete(l.last, name)
	delete(l.ours, name)
	delete(l.reads, name)
	delete(l.aside, name)
	delete(l.lost, name)
	l.dealtWith(name)
}

// ClusterLives notes that kube-controller-manager has written something, with so
// many requests of its PersistentVolume controller's client.
func (l *volumeLag) ClusterLives(requests int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spent += requests
	l.lives()
}

func (l *volumeLag) lives() {
	now := l.clock.Now()
	if now.Sub(l.alive) > l.pace.Pause {
		l.resumed = now
	}
	l.alive, l.dead = now, false
	for volume := range l.last {
		l.wake(volume)
	}
	clear(l.last)
}

// proves notes that the worker has read a volume.
func (l *volumeLag) proves(seen sighting) {
	if seen.place > l.read.place {
		l.read = seen
	}
}

// sight returns when a fresh volume was seen first, which is now unless it was.
func (l *volumeLag) sight(name string) sighting {
	seen, known := l.fresh[name]
	if !known {
		seen = l.sighted()
		l.fresh[name] = seen
	}
	return seen
}

// await returns when a volume of ours that waits to be bound was seen first.
func (l *volumeLag) await(volume *corev1.PersistentVolume) sighting {
	l.leads = true // nobody else asks
	seen, known := l.waiting[volume.Name]
	if known {
		return seen
	}
	switch seen, known = l.fresh[volume.Name]; {
	case known:
	case isFresh(volume):
		// The watch is about to show it, in its turn.
		return l.now(math.MaxUint64)
	default: // a bind that somebody began
		seen = l.sighted()
	}
	l.waiting[volume.Name] = seen
	return seen
}

// Age is how long the watch has shown a volume that waits to be bound.
func (l *volumeLag) Age(volume *corev1.PersistentVolume) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock.Since(l.await(volume).at)
}

// Binds notes that Berth is about to write the volume's phase, so that nobody
// takes it for kube-controller-manager's.
func (l *volumeLag) Binds(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ours[name] = true
}

// Settled notes that the volume waits no more: it is bound, or will not be.
func (l *volumeLag) Settled(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, name)
	delete(l.last, name)
}
