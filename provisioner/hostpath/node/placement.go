package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/provisioner/directory"
)

// promises are what was promised on a filesystem.
type promises struct {
	// all is the sum of the sizes of all volumes, enforced of those whose sizes
	// the filesystem enforces, so that their use is known.
	all, enforced int64
	// written is how much of enforced is written.
	written int64
}

// room returns how much more can be promised on a filesystem: what is free, what
// of its size is not promised yet, or what is free without what volumes may still
// write, whichever is less, and without the reserve.
//
// The last of the three counts what others than Berth have on the filesystem. It
// can do so for volumes whose sizes are enforced only. How much another volume has
// written nobody knows, short of walking over its files: what others write may be
// promised to such volumes as well.
func (l Limits) room(space directory.Space, p promises) int64 {
	reserve := l.Reserve.of(space.Total)
	room := size(space.Free) - reserve
	if l.Overcommit > 0 {
		ours := uint64(size(space.Free)) + uint64(p.written) //nolint:gosec // neither is negative
		room = min(room,
			overcommitted(space.Total, l.Overcommit)-reserve-p.all,
			overcommitted(ours, max(1, l.Overcommit))-reserve-p.enforced)
	}
	return max(0, room)
}

// most returns the size of the largest volume that a filesystem could ever hold.
func (l Limits) most(space directory.Space) int64 {
	reserve := l.Reserve.of(space.Total)
	most := size(space.Total) - reserve
	if l.Overcommit > 0 {
		most = min(most, overcommitted(space.Total, l.Overcommit)-reserve)
	}
	return max(0, most)
}

// fits reports whether as much as wanted may be promised where c has its room. What
// a directory to be adopted takes is taken, whatever becomes of the claim: for that
// much there is always room.
func (l Limits) fits(wanted int64, c candidate) bool {
	if c.held > 0 && wanted <= c.held {
		return true
	}
	if l.Overcommit == 0 {
		return c.room > 0 // sizes do not count
	}
	return wanted <= c.room
}

func overcommitted(total uint64, factor float64) int64 {
	product := float64(total) * factor
	if product >= float64(maxSize) {
		return maxSize
	}
	return int64(product)
}

const maxSize = 1 << 62

func size(n uint64) int64 { return int64(min(n, maxSize)) }

// candidate is a directory that a volume could be made in.
type candidate struct {
	*place
	space directory.Space
	// written is how much was written under each project id of the filesystem,
	// before space was looked at.
	written map[uint32]int64
	// limiting says that the size of a volume would be enforced.
	limiting bool
	room     int64
	// held is what a directory to be adopted takes, which space counts as free.
	held int64
	// owed is what volumes with enforced sizes have not written of them.
	owed int64
}

// byRoom orders candidates by room, then by name. Those that were refused come
// last: to ask about them again costs a list of all volumes of the cluster.
func byRoom(a, b candidate) int {
	if refused := a.refusedLately(); refused != b.refusedLately() {
		if refused {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(b.room, a.room), strings.Compare(a.base, b.base))
}

// ledger keeps what is promised and not written yet, so that two volumes are not
// promised the same bytes.
type ledger struct {
	mu     sync.Mutex
	places []*place
}

// promised returns what was promised on the filesystem of c, by any pool. The
// caller holds mu.
func (l *ledger) promised(c candidate) promises {
	var sum promises
	for _, p := range l.on(c.space.Device) {
		enforced, written := p.Enforced(c.written, p.pending)
		sum.all += p.Promised(p.pending)
		sum.enforced += enforced
		sum.written += written
	}
	return sum
}

// on returns the directories that were seen on a filesystem.
func (l *ledger) on(device uint64) []*place {
	var places []*place
	for _, p := range l.places {
		if p.device.Load() == device {
			places = append(places, p)
		}
	}
	return places
}

// projects returns the project ids of all volumes on a filesystem whose sizes are
// enforced.
func (l *ledger) projects(device uint64) []uint32 {
	var ids []uint32
	for _, p := range l.on(device) {
		ids = append(ids, p.Projects()...)
	}
	return ids
}

// rooms fills in the room of each candidate.
func (l *ledger) rooms(limits Limits, candidates []candidate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roomsLocked(limits, candidates)
}

func (l *ledger) roomsLocked(limits Limits, candidates []candidate) {
	for i, c := range candidates {
		p := l.promised(c)
		candidates[i].room, candidates[i].owed = limits.room(c.space, p), p.enforced-p.written
	}
}

// wish is what a volume is to have.
type wish struct {
	name string
	size int64
	// limited says that its size is to be enforced, where that can be.
	limited bool
}

// take promises what w asks for in the best of candidates that has the room, and
// returns which that is. What was promised is taken back with give, once the
// volume's marker counts, or will never be.
func (l *ledger) take(limits Limits, candidates []candidate, w wish) (candidate, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roomsLocked(limits, candidates)
	slices.SortFunc(candidates, byRoom)
	for _, c := range candidates {
		if limits.fits(w.size, c) {
			c.pending[w.name] = directory.Promise{Bytes: w.size, Enforced: w.limited && c.limiting}
			return c, true
		}
	}
	return candidate{}, false
}

// give takes back what take has promised.
func (l *ledger) give(p *place, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(p.pending, name)
}

// survey looks at directories, all at once. It returns those that can be used, in
// the order given, and why the others can't.
func survey(ctx context.Context, places []*place) ([]candidate, error) {
	candidates := make([]candidate, len(places))
	for i, p := range places {
		candidates[i].place = p
	}
	return eachAtOnce(candidates, func(c *candidate) (err error) {
		c.space, err = c.look(ctx)
		return err
	})
}

// measure looks how much volumes have written on the filesystems of candidates,
// and at the filesystems once more. It returns those that can still be used, and
// why the others can't. The pools that may share the filesystems must be known
// by then: acquaint sees to that.
func (s *Server) measure(ctx context.Context, candidates []candidate) ([]candidate, error) {
	if s.options.Quota == nil {
		return candidates, nil
	}
	return eachAtOnce(candidates, func(c *candidate) error {
		projects := s.ledger.projects(c.space.Device)
		measured, err := ask(ctx, c.place, func(ctx context.Context) (m candidate, err error) {
			m.limiting = c.CanLimit(ctx) == nil
			// What is written between these two counts twice, rather than not at all.
			if m.written, err = c.Written(ctx, projects); err == nil {
				m.space, err = c.Space(ctx)
			}
			return m, err
		})
		c.limiting, c.written, c.space = measured.limiting, measured.written, measured.space
		return err
	})
}

// eachAtOnce calls f with all candidates at once. It returns those for which f did
// not fail, in the order given, and why it did for the others.
func eachAtOnce(candidates []candidate, f func(*candidate) error) ([]candidate, error) {
	failed := make([]error, len(candidates))
	group := errgroup.Group{}
	for i := range candidates {
		group.Go(func() error {
			failed[i] = f(&candidates[i])
			return nil
		})
	}
	_ = group.Wait()
	var usable []candidate
	for i, c := range candidates {
		if failed[i] == nil {
			usable = append(usable, c)
		}
	}
	return usable, errors.Join(failed...)
}

// surveyAwake is survey without the disks that did not answer just now, as long as
// there is another one that can be used.
func surveyAwake(ctx context.Context, places []*place) ([]candidate, error) {
	asked, spared := awake(places)
	usable, unusable := survey(ctx, asked)
	if len(usable) == 0 && len(spared) > 0 {
		usable, others := survey(ctx, spared)
		return usable, errors.Join(unusable, others)
	}
	for _, p := range spared {
		unusable = errors.Join(unusable, p.sparedError())
	}
	return usable, unusable
}

// acquaint looks at the directories of other pools that nothing is known of yet:
// they may lie on a filesystem that this pool uses too, and have promised it.
func (s *Server) acquaint(ctx context.Context, except *pool) {
	var others []*place
	for _, p := range s.ledger.places {
		if p.pool != except.name && p.unknown() {
			others = append(others, p)
		}
	}
	if len(others) > 0 {
		_, _ = survey(ctx, others) // who can't be read is asked again later
	}
}

// noRoom says that no directory has room for what is wanted.
func (s *Server) noRoom(p *pool, wanted int64, candidates []candidate) error {
	var each []string
	for _, c := range candidates {
		text := fmt.Sprintf("%s has room for %s (%s free of %s", c.base, bytes(roundDown(max(c.room, c.held))), bytes(roundDown(size(c.space.Free))), bytes(roundDown(size(c.space.Total))))
		if reserve := s.options.Limits.Reserve.of(c.space.Total); reserve > 0 {
			text += fmt.Sprintf(", %s of them kept in reserve", bytes(roundDown(reserve)))
		}
		if s.options.Limits.Overcommit > 0 && c.owed > 0 {
			text += fmt.Sprintf(", %s promised to volumes that have not written it", bytes(roundDown(c.owed)))
		}
		if c.held > 0 {
			text += fmt.Sprintf(", with %s that the directory holds already", bytes(roundDown(c.held)))
		}
		each = append(each, text+")")
	}
	return fmt.Errorf("pool %s on node %s has no room for %s: %s", p.name, s.options.NodeName, bytes(wanted), strings.Join(each, ", "))
}

// roundDown makes a size readable as a quantity: to whole GiB, or MiB when it
// is less than one.
func roundDown(n int64) int64 {
	unit := int64(1 << 30)
	if n < unit {
		unit = 1 << 20
	}
	return n - n%unit
}
