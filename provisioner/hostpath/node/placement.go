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

// room returns how much more can be promised on a filesystem: what is free and
// what has not been promised yet, whichever is less, without the reserve.
func (l Limits) room(space directory.Space, promised int64) int64 {
	reserve := l.Reserve.of(space.Total)
	room := size(space.Free) - reserve
	if l.Overcommit > 0 {
		room = min(room, overcommitted(space.Total, l.Overcommit)-reserve-promised)
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

// fits reports whether as much as wanted may be promised where there is room.
func (l Limits) fits(wanted, room int64) bool {
	if l.Overcommit == 0 {
		return room > 0 // sizes do not count
	}
	return wanted <= room
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
	room  int64
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

// promised returns what was promised on a filesystem, by any pool. The caller
// holds mu.
func (l *ledger) promised(device uint64) int64 {
	var sum int64
	for _, p := range l.places {
		if p.device.Load() == device {
			sum += p.Promised(p.pending)
		}
	}
	return sum
}

// rooms fills in the room of each candidate.
func (l *ledger) rooms(limits Limits, candidates []candidate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roomsLocked(limits, candidates)
}

func (l *ledger) roomsLocked(limits Limits, candidates []candidate) {
	for i, c := range candidates {
		candidates[i].room = limits.room(c.space, l.promised(c.space.Device))
	}
}

// take promises what is wanted under name in the best of candidates that has the room, and
// returns which that is. What was promised is taken back with give, once the
// volume's marker counts, or will never be.
func (l *ledger) take(limits Limits, candidates []candidate, name string, wanted int64) (candidate, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roomsLocked(limits, candidates)
	slices.SortFunc(candidates, byRoom)
	for _, c := range candidates {
		if limits.fits(wanted, c.room) {
			c.pending[name] = wanted
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
	found := make([]candidate, len(places))
	failed := make([]error, len(places))
	group := errgroup.Group{}
	for i, p := range places {
		group.Go(func() error {
			space, err := p.look(ctx)
			found[i], failed[i] = candidate{place: p, space: space}, err
			return nil
		})
	}
	_ = group.Wait()
	var usable []candidate
	for i, c := range found {
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
		text := fmt.Sprintf("%s has room for %s (%s free of %s", c.base, bytes(c.room), bytes(roundDown(size(c.space.Free))), bytes(roundDown(size(c.space.Total))))
		if reserve := s.options.Limits.Reserve.of(c.space.Total); reserve > 0 {
			text += fmt.Sprintf(", %s of them kept in reserve", bytes(roundDown(reserve)))
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
