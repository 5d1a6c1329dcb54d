package quota

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Range is the project ids that may be used, from First to Last inclusive.
type Range struct {
	First, Last uint32
}

// DefaultRange keeps clear of kubelet, which counts up from 1,048,577, of
// container runtimes, which count up from 1, and of what people assign by hand.
var DefaultRange = Range{First: 1 << 30, Last: 1<<31 - 1}

// maxID is the largest project id: the kernel takes the one above for none.
const maxID = 1<<32 - 2

// ParseRange reads two numbers with a "-" in between, such as
// "1073741824-2147483647".
func ParseRange(s string) (Range, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return Range{}, fmt.Errorf("project ids %q: write first-last, for example %s", s, DefaultRange)
	}
	var (
		ids [2]uint32
		err error
	)
	for i, text := range []string{first, last} {
		if ids[i], err = parseID(text); err != nil {
			return Range{}, fmt.Errorf("project ids %q: %w", s, err)
		}
	}
	if ids[1] < ids[0] {
		return Range{}, fmt.Errorf("project ids %q: the second number is smaller than the first", s)
	}
	return Range{First: ids[0], Last: ids[1]}, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > maxID {
		return 0, fmt.Errorf("%q is no number from 1 to %d", s, uint32(maxID))
	}
	return uint32(n), nil
}

// String returns what ParseRange reads.
func (r Range) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

func (r Range) size() uint64 { return uint64(r.Last) - uint64(r.First) + 1 }

func (r Range) contains(id uint32) bool { return r.First <= id && id <= r.Last }

// start returns where the search for an id of a pool begins. Each pool has a
// place of its own, as good as surely, so that two processes that make volumes
// on one filesystem at the same time don't reach for the same id.
func (r Range) start(pool string) uint32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(pool))
	return r.First + uint32(h.Sum64()%r.size()) //nolint:gosec // at most Last
}

// next returns the id after id, the first one after the last.
func (r Range) next(id uint32) uint32 {
	if id >= r.Last {
		return r.First
	}
	return id + 1
}

// holders know which ids this process has in hand, on whatever filesystem.
type holders struct {
	mu  sync.Mutex
	ids map[directory.QuotaOwner]uint32
	of  map[uint32]directory.QuotaOwner
}

// hold gives id to owner, unless it is somebody else's; then it returns false.
func (h *holders) hold(owner directory.QuotaOwner, id uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.holdLocked(owner, id)
}

func (h *holders) holdLocked(owner directory.QuotaOwner, id uint32) bool {
	if other, taken := h.of[id]; taken && other != owner {
		return false
	}
	h.releaseLocked(owner)
	h.ids[owner], h.of[id] = id, owner
	return true
}

func (h *holders) release(owner directory.QuotaOwner) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.releaseLocked(owner)
}

func (h *holders) releaseLocked(owner directory.QuotaOwner) {
	if id, ok := h.ids[owner]; ok {
		delete(h.ids, owner)
		delete(h.of, id)
	}
}

// reserve gives owner an id of r that nobody holds and that is not in use, as
// far as the function of that name knows. The lock is held meanwhile, so that
// two owners never get the same answer.
func (h *holders) reserve(owner directory.QuotaOwner, r Range, prefer uint32, inUse func(id uint32) (bool, error)) (uint32, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := r.start(owner.Pool)
	if r.contains(prefer) {
		id = prefer
	}
	for range r.size() {
		if other, taken := h.of[id]; !taken || other == owner {
			used, err := inUse(id)
			if err != nil {
				return 0, err
			}
			if !used {
				h.holdLocked(owner, id)
				return id, nil
			}
		}
		id = r.next(id)
	}
	return 0, &directory.QuotaUnsupportedError{Reason: fmt.Sprintf("every project id from %s is in use", r)}
}
