// Package quotatest has project quotas for tests, on filesystems that have none.
package quotatest

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Quota is a directory.Quota that remembers limits and enforces nothing. What
// volumes have written is what the test says.
type Quota struct {
	mu     sync.Mutex
	ids    map[uint64]uint32 // by inode
	limits map[uint32]int64
	used   map[uint32]int64
	last   uint32
	reason string
}

var _ directory.Quota = (*Quota)(nil)

// New returns quotas that can limit any directory.
func New() *Quota {
	return &Quota{ids: map[uint64]uint32{}, limits: map[uint32]int64{}, used: map[uint32]int64{}}
}

// SwitchOff has everything fail with a *directory.QuotaUnsupportedError of that
// reason, until it is called with "".
func (q *Quota) SwitchOff(reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reason = reason
}

// Write says that each volume with that limit holds so many bytes.
func (q *Quota) Write(limit, used int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, l := range q.limits {
		if l == limit {
			q.used[id] = used
		}
	}
}

// call calls f unless quotas are switched off.
func (q *Quota) call(f func() error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.reason != "" {
		return &directory.QuotaUnsupportedError{Reason: q.reason}
	}
	return f()
}

func inode(dir directory.Dir) (ino uint64, err error) {
	err = dir.(directory.Handle).Control("stat", func(fd int) error {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		ino = st.Ino
		return err
	})
	return ino, err
}

// Check implements directory.Quota.
func (q *Quota) Check(context.Context, directory.Dir) error {
	return q.call(func() error { return nil })
}

// Hold implements directory.Quota.
func (q *Quota) Hold(_ directory.QuotaOwner, id uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = max(q.last, id)
}

// Release implements directory.Quota. No id is given out twice.
func (q *Quota) Release(directory.QuotaOwner) {}

// Reserve implements directory.Quota.
func (q *Quota) Reserve(_ context.Context, _ directory.Dir, _ directory.QuotaOwner, prefer uint32) (id uint32, err error) {
	err = q.call(func() error {
		if id = prefer; id == 0 {
			q.last++
			id = q.last
		}
		return nil
	})
	return id, err
}

// Project implements directory.Quota.
func (q *Quota) Project(_ context.Context, dir directory.Dir) (id uint32, err error) {
	ino, err := inode(dir)
	if err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ids[ino], nil
}

// SetProject implements directory.Quota.
func (q *Quota) SetProject(_ context.Context, dir directory.Dir, id uint32) error {
	ino, err := inode(dir)
	if err != nil {
		return err
	}
	return q.call(func() error { q.ids[ino] = id; return nil })
}

// Raise implements directory.Quota.
func (q *Quota) Raise(_ context.Context, _ directory.Dir, id uint32, size int64) error {
	return q.call(func() error { q.limits[id] = max(q.limits[id], size); return nil })
}

// Lift implements directory.Quota.
func (q *Quota) Lift(_ context.Context, _ directory.Dir, id uint32) error {
	return q.call(func() error { delete(q.limits, id); return nil })
}

// Usage implements directory.Quota.
func (q *Quota) Usage(_ context.Context, _ directory.Dir, id uint32) (u directory.QuotaUsage, err error) {
	err = q.call(func() error {
		u = directory.QuotaUsage{UsedBytes: q.used[id], LimitBytes: q.limits[id], Files: 1}
		return nil
	})
	return u, err
}
