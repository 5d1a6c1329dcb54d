package controllers

import (
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Wait returns how long to wait before asking again whether
// kube-controller-manager has read the volume, and for what; 0 when it surely
// has, or is dead and has nothing older to deal with when it comes back. writes is the number of other writes that are due to
// claims, for which its client has the same tokens.
func (l *volumeLag) Wait(volume *corev1.PersistentVolume, writes int) (time.Duration, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.await(volume)
	l.due = writes
	l.look()
	age := l.clock.Since(seen.at)
	switch need, lasting := l.need(seen, writes); {
	case !l.ready:
		return poll(age), "Berth is still reading which volumes there are"
	case !l.oldest.IsZero() && (seen.behind || l.oldest.Before(seen.at.Add(l.pace.Margin))):
		return poll(age), "kube-controller-manager has older volumes to deal with"
	case l.read.place > 0 && seen.place <= l.read.place:
		return 0, ""
	case lasting > l.pace.Leave:
		return poll(age), "kube-controller-manager is far behind with volumes, and binds this one when it gets there"
	case age < need:
		return min(need-age, poll(age)), "kube-controller-manager may be behind with volumes"
	case l.resumed.After(seen.at) && l.clock.Since(l.resumed) < max(need, l.pace.Drain):
		return poll(age), "kube-controller-manager has just begun to do something again"
	case !l.dead && !l.alive.After(seen.at):
		l.last[volume.Name] = true
		return poll(age), "kube-controller-manager has done nothing since the volume is there"
	}
	return 0, ""
}

// poll is how soon to look again at something that has lasted for age.
func poll(age time.Duration) time.Duration {
	return min(max(age/8, 100*time.Millisecond), time.Second)
}

// need is how old a volume that was seen then must be for the worker to have read
// it, by what can't be seen, when so many other writes are due; and what of that any
// volume needs that is made now.
func (l *volumeLag) need(seen sighting, writes int) (need, lasting time.Duration) {
	resync := min(time.Duration(l.total)*l.pace.Resync, l.pace.Leave)
	requests, meanwhile := len(l.reads)+2*l.stuck, 0 // a stuck volume costs a read, and a write that is refused
	if len(l.reads) > 0 || l.stuck > fewSigns {
		// They wait for a token like all that the client was, or is, to do meanwhile.
		requests += writes
		meanwhile = len(l.aside) + l.spent - seen.spent
	}
	lasting = max(resync+time.Duration(requests)*l.pace.Read, l.known())
	return max(lasting, resync+time.Duration(requests+meanwhile)*l.pace.Read), lasting
}

// known is what of the learned lag is not forgotten yet.
func (l *volumeLag) known() time.Duration {
	halvings := l.clock.Since(l.learnedAt).Seconds() / l.pace.Forget.Seconds()
	return time.Duration(float64(l.learned) * math.Exp2(-halvings))
}

// look brings up to date what depends on all signs and waiting volumes.
func (l *volumeLag) look() {
	now := l.clock.Now()
	if now.Sub(l.looked) < l.pace.Look {
		return
	}
	l.looked, l.oldest, l.stuck, l.asked = now, time.Time{}, 0, time.Time{}
	passedOver := 0
	for _, sign := range l.signs {
		if l.isPassedOver(sign, now) {
			passedOver++
		}
	}
	for _, sign := range l.signs {
		switch {
		case l.isStuck(sign, now, passedOver):
			l.stuck++
		case l.oldest.IsZero() || sign.since.Before(l.oldest):
			l.oldest = sign.since
		}
	}
	for _, volume := range l.waiting {
		if l.asked.IsZero() || volume.at.Before(l.asked) {
			l.asked = volume.at
		}
	}
	if l.asked.IsZero() {
		return
	}
	since := l.asked
	if l.alive.After(since) {
		since = l.alive
	}
	// Reads are work that nobody sees.
	_, reading := l.need(sighting{}, 0)
	l.dead = l.dead || now.Sub(since) >= l.pace.Silence+reading
}

// isPassedOver reports whether the worker has read a volume that is behind that of
// sign in its queue.
func (l *volumeLag) isPassedOver(sign *lagSign, now time.Time) bool {
	passed := l.read.at.After(sign.since.Add(l.pace.Margin))
	if sign.place > 0 {
		passed = l.read.place > sign.place
	}
	if passed && sign.passed.IsZero() {
		sign.passed = now
	}
	return !sign.passed.IsZero()
}

// isStuck reports whether nothing will come of sign. When many have been passed over
// kube-controller-manager has started anew, has read all volumes at once, and
// works them off now.
func (l *volumeLag) isStuck(sign *lagSign, now time.Time, passedOver int) bool {
	if sign.passed.IsZero() {
		return false
	}
	// The worker may be waiting for a token.
	waits := time.Duration(l.due) * l.pace.Read
	since, patience := sign.passed, l.pace.Stuck
	if l.progress.After(since) {
		since = l.progress
	}
	if sign.place > 0 && passedOver <= fewSigns {
		patience = l.pace.NewStuck
	}
	return now.Sub(since) >= patience+waits
}

// fewSigns may be stuck at once and be told by their order alone.
const fewSigns = 3

// Known returns the lag that is known, and how many signs do not count since
// they stay for ever.
func (l *volumeLag) Known(writes int) (lag time.Duration, stuck int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due = writes
	l.look()
	_, lag = l.need(sighting{}, writes)
	if !l.oldest.IsZero() {
		lag = max(lag, l.clock.Since(l.oldest))
	}
	return lag, l.stuck
}

// CalledLost notes that kube-controller-manager has called the claim of a volume
// of that age Lost: it had not read it yet. It returns how long to wait
// before putting the claim right; 0 when it is time.
func (l *volumeLag) CalledLost(name string, age time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	lost, again := l.lost[name]
	if again = again && now.Sub(lost.told) <= 2*l.pace.MaxRepair; !again {
		lost = &lostClaim{wait: l.pace.Repair, due: now.Add(l.pace.Repair)}
		l.lost[name] = lost
	}
	lost.told = now
	if lag := min(2*age, l.pace.MaxLearned); !again && age < l.pace.MaxLearned && lag > l.known() {
		l.learned, l.learnedAt = lag, now
	}
	return max(0, lost.due.Sub(now))
}

// Repaired notes that Berth has put a claim right. The next time it waits longer.
func (l *volumeLag) Repaired(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, known := l.lost[name]
	if !known {
		return
	}
	lost.wait = min(2*lost.wait, l.pace.MaxRepair)
	lost.due = l.clock.Now().Add(lost.wait)
}
