package directory

import (
	"sync"
	"time"
)

// visit is a session that several operations share. Its directories are closed
// when the last of them has left and no more may join.
type visit struct {
	session *session
	until   time.Time

	mu    sync.Mutex
	users int
}

// newVisit makes s a visit with two users: the caller, who has s, and visits.
func newVisit(s *session, life time.Duration) *visit {
	v := &visit{session: s, until: time.Now().Add(life), users: 2}
	s.shared = v
	return v
}

// join adds a user, unless the visit is over.
func (v *visit) join() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.users == 0 || time.Now().After(v.until) {
		return false
	}
	v.users++
	return true
}

func (v *visit) leave() {
	v.mu.Lock()
	v.users--
	last := v.users == 0
	v.mu.Unlock()
	if last {
		v.session.closeDirs()
	}
}

// visits is the visit that may be joined, if there is one.
type visits struct {
	mu      sync.Mutex
	current *visit
}

// join returns the session of the visit, which the caller must close; nil when
// there is none to join.
func (all *visits) join() *session {
	all.mu.Lock()
	v := all.current
	all.mu.Unlock()
	if v == nil || !v.join() {
		return nil
	}
	return v.session
}

// replace lets callers join next, which may be nil, from now on.
func (all *visits) replace(next *visit) {
	all.mu.Lock()
	before := all.current
	all.current = next
	all.mu.Unlock()
	if before != nil {
		before.leave()
	}
}
