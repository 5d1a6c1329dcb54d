package hostpath

import (
	"errors"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
)

// minConfirmed is longer than it takes until a claim tries a silent node again.
const minConfirmed = time.Minute

// spot is what may not answer: a node or, with a pool, the disks that new volumes
// of this pool lie on.
type spot struct{ node, pool string }

// silence remembers since when nodes and pools have not answered. Of a pool only
// the creation of volumes tells: other calls are answered without its disks, or by
// those of its disks that are well.
type silence struct {
	clock clock.PassiveClock
	// confirmed is for how long nobody may have found a spot silent without its
	// silence being forgotten.
	confirmed time.Duration

	mu     sync.Mutex
	spells map[spot]spell
}

// spell is the silence of one spot: since when, and when that was found last.
type spell struct{ since, last time.Time }

func newSilence(c clock.PassiveClock, limit time.Duration) *silence {
	return &silence{clock: c, confirmed: max(limit/2, minConfirmed), spells: map[spot]spell{}}
}

// learn learns from what a call came to, at a pool if it was to make a volume.
func (s *silence) learn(at spot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := spot{node: at.node}
	_, unavailable := provisioner.RetryAfter(err)
	st, answered := status.FromError(err)
	if !answered {
		st = status.FromContextError(err)
	}
	code := st.Code()
	switch {
	case errors.Is(err, ErrNotAsked):
		s.goesOnLocked(node)
		s.goesOnLocked(at)
		return
	case unavailable, !answered && code == codes.DeadlineExceeded:
		s.beginsLocked(node)
		s.beginsLocked(at)
		return
	case code == codes.Canceled:
		return // the caller gave up
	}
	delete(s.spells, node)
	if at.pool == "" {
		return
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded:
		s.beginsLocked(at)
	case codes.Aborted:
		s.goesOnLocked(at) // what is under way may hang
	case codes.InvalidArgument:
		// No disk was asked.
	default:
		delete(s.spells, at)
	}
}

// beginsLocked notes that at was found silent.
func (s *silence) beginsLocked(at spot) {
	now := s.clock.Now()
	found, known := s.currentLocked(at)
	if !known {
		maps.DeleteFunc(s.spells, func(_ spot, old spell) bool { return now.Sub(old.last) > s.confirmed })
		found.since = now
	}
	s.spells[at] = spell{since: found.since, last: now}
}

// goesOnLocked notes that somebody called, and could not find that at is silent no
// more.
func (s *silence) goesOnLocked(at spot) {
	if found, known := s.currentLocked(at); known {
		s.spells[at] = spell{since: found.since, last: s.clock.Now()}
	}
}

// currentLocked returns the silence of at, unless it was not confirmed lately: what
// went wrong once says nothing about today.
func (s *silence) currentLocked(at spot) (spell, bool) {
	found, known := s.spells[at]
	if !known || s.clock.Since(found.last) > s.confirmed {
		return spell{}, false
	}
	return found, true
}

// of returns for how long at has not answered.
func (s *silence) of(at spot) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, known := s.currentLocked(at)
	if !known {
		return 0
	}
	return s.clock.Since(found.since)
}
