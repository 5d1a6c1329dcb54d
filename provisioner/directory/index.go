package directory

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// index knows the paths of all volumes, so that no two overlap. It holds what
// the markers say, and what running Creates are about to make.
type index struct {
	mu sync.Mutex
	// owner maps a path to the volume it belongs to, path the other way round.
	owner map[string]string
	path  map[string]string
	// below counts the volumes below a directory, without those in leaving.
	below map[string]int
	// leaving holds the paths of volumes whose directories were moved away but
	// whose markers are still there; leavingBelow counts them like below. They
	// keep others from their paths, but not their parents from being pruned.
	leaving      map[string]bool
	leavingBelow map[string]int
	// made holds the directories that were made for a pattern, rather than by
	// an administrator, until they are removed.
	made map[string]bool
	// damaged holds the volumes whose markers can't be trusted.
	damaged map[string]damage
	// sizes holds what the volumes were promised, promised their sum.
	sizes    map[string]int64
	promised int64
	// projects holds the project ids of the volumes whose sizes are enforced.
	projects map[string]uint32

	unsettled unsettled
}

func newIndex() *index {
	return &index{
		owner:   map[string]string{},
		path:    map[string]string{},
		below:   map[string]int{},
		leaving: map[string]bool{},
		made:    map[string]bool{},
		damaged: map[string]damage{},
		sizes:   map[string]int64{},

		leavingBelow: map[string]int{},
		projects:     map[string]uint32{},
	}
}

// Siblings are the pools of a process of which some may have the same base,
// reached in different ways: an NFS export by two names of its server, or in
// two versions of the protocol. They know of each other's paths. The zero value
// is ready.
type Siblings struct {
	mu      sync.Mutex
	indexes map[string]*index
}

// share returns the index of the pool id, which is fresh for the first to ask.
func (s *Siblings) share(id string, fresh *index) *index {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.indexes[id]; ok {
		return known
	}
	if s.indexes == nil {
		s.indexes = map[string]*index{}
	}
	s.indexes[id] = fresh
	return fresh
}

// knows reports whether volume has a path, or a marker that can't be read.
func (x *index) knows(volume string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, damaged := x.damaged[volume]
	_, hasPath := x.path[volume]
	return damaged || hasPath
}

// reserve gives path to volume, unless it overlaps another volume's.
func (x *index) reserve(path, volume string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[path] == volume {
		return nil
	}
	if err := x.checkLocked(path); err != nil {
		return err
	}
	x.owner[path] = volume
	x.path[volume] = path
	for _, dir := range ancestors(path) {
		x.below[dir]++
	}
	return nil
}

// overlapping returns a volume other than the one given that is at path, above or
// below it, and where that is.
func (x *index) overlapping(path, volume string) (other, at string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p, owner := range x.owner {
		if owner != volume && (p == path || strings.HasPrefix(p, path+"/") || strings.HasPrefix(path, p+"/")) {
			return owner, p
		}
	}
	return "", ""
}

// check refuses a path that is, holds, or lies in a volume.
func (x *index) check(path string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.checkLocked(path)
}

func (x *index) checkLocked(path string) error {
	if x.leaving[path] || x.leavingBelow[path] > 0 {
		return fmt.Errorf("%s is being deleted: %w", shown(path), ErrConflict)
	}
	if x.owner[path] != "" || x.below[path] > 0 {
		return refuseConflict(path, path)
	}
	for _, dir := range ancestors(path) {
		if x.leaving[dir] {
			return fmt.Errorf("%s is being deleted: %w", shown(dir), ErrConflict)
		}
		if x.owner[dir] != "" {
			return refuseConflict(path, dir)
		}
	}
	return nil
}

// leave notes that the directory of volume, at path, was moved away.
func (x *index) leave(path, volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[path] != volume || x.leaving[path] {
		return
	}
	x.leaving[path] = true
	for _, dir := range ancestors(path) {
		decrement(x.below, dir)
		x.leavingBelow[dir]++
	}
}

// stay is the opposite of leave.
func (x *index) stay(path, volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[path] == volume {
		x.stayLocked(path)
	}
}

func (x *index) stayLocked(path string) {
	if !x.leaving[path] {
		return
	}
	delete(x.leaving, path)
	for _, dir := range ancestors(path) {
		x.below[dir]++
		decrement(x.leavingBelow, dir)
	}
}

// release takes path back from volume. That of another volume, which may have
// got it since, is left.
func (x *index) release(path, volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.owner[path] != volume {
		return
	}
	x.stayLocked(path)
	x.forgetLocked(volume)
	delete(x.owner, path)
	delete(x.path, volume)
	delete(x.damaged, volume)
	for _, dir := range ancestors(path) {
		decrement(x.below, dir)
	}
}

// setMade notes the directories that were, or are about to be, made for m.
func (x *index) setMade(m Marker) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, dir := range m.made() {
		x.made[dir] = true
	}
}

// removed notes that dir was removed. When a volume is being made below it, it
// will be made again, so it stays known as made for a pattern.
func (x *index) removed(dir string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.below[dir] == 0 {
		delete(x.made, dir)
	}
}

// isMade reports whether dir was made for a pattern.
func (x *index) isMade(dir string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.made[dir]
}

// isAncestor reports whether dir lies above a volume other than one at path.
func (x *index) isAncestor(dir, path string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	others := x.below[dir]
	if _, ok := x.owner[path]; ok {
		others--
	}
	return others > 0
}

// inUse reports whether any volume lies below dir.
func (x *index) inUse(dir string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.below[dir] > 0
}

// ownerOf returns the volume at path, or "".
func (x *index) ownerOf(path string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.owner[path]
}

// volumes counts the volumes.
func (x *index) volumes() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.owner)
}

func decrement(counts map[string]int, key string) {
	if counts[key]--; counts[key] <= 0 {
		delete(counts, key)
	}
}

// keyedLock is one lock per key, for as long as somebody wants it.
type keyedLock struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	held  chan struct{}
	users int
}

// lock waits for the lock of key, or for ctx.
func (k *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l, ok := k.locks[key]
	if !ok {
		l = &keyLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()

	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
