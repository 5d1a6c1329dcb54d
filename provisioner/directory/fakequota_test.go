package directory_test

import (
	"context"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
)

// fakeQuota is a filesystem's project quotas as a test would have them: they
// outlive a pool, and an id is in use as long as a directory with it exists.
type fakeQuota struct {
	mu     sync.Mutex
	files  map[inode]*os.File // that carry an id
	ids    map[inode]uint32
	limits map[uint32]int64
	held   map[uint32]directory.QuotaOwner // gone after a restart
	// unsupported is what Check and everything else that asks for limits fail
	// with, unless it is empty.
	unsupported string
}

type inode struct{ device, number uint64 }

func newFakeQuota(t *testing.T) *fakeQuota {
	q := &fakeQuota{files: map[inode]*os.File{}, ids: map[inode]uint32{}, limits: map[uint32]int64{}}
	q.restart()
	t.Cleanup(func() {
		for _, file := range q.files {
			_ = file.Close()
		}
	})
	return q
}

// restart forgets what a process forgets.
func (q *fakeQuota) restart() { q.held = map[uint32]directory.QuotaOwner{} }

func (q *fakeQuota) enter(op string) (leave func(), err error) {
	q.mu.Lock()
	if q.unsupported != "" && op != "Project" {
		err = &directory.QuotaUnsupportedError{Reason: q.unsupported}
	}
	return q.mu.Unlock, err
}

func inodeOf(dir directory.Dir) (ino inode, file *os.File, _ error) {
	err := dir.(directory.Handle).Control("fake", func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		ino = inode{st.Dev, st.Ino}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		file = os.NewFile(uintptr(own), "")
		return err
	})
	return ino, file, err
}

// tidy forgets directories that were removed.
func (q *fakeQuota) tidy() {
	for ino, file := range q.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Nlink == 0 {
			_ = file.Close()
			delete(q.files, ino)
			delete(q.ids, ino)
		}
	}
}

func (q *fakeQuota) carriers(id uint32) (n uint64) {
	q.tidy()
	for _, carried := range q.ids {
		if carried == id {
			n++
		}
	}
	return n
}

func (q *fakeQuota) Check(context.Context, directory.Dir) error {
	leave, err := q.enter("Check")
	defer leave()
	return err
}

func (q *fakeQuota) Hold(owner directory.QuotaOwner, id uint32) {
	if _, taken := q.held[id]; !taken {
		q.held[id] = owner
	}
}

func (q *fakeQuota) Release(owner directory.QuotaOwner) {
	for id, holder := range q.held {
		if holder == owner {
			delete(q.held, id)
		}
	}
}

func (q *fakeQuota) Reserve(_ context.Context, _ directory.Dir, owner directory.QuotaOwner, prefer uint32) (uint32, error) {
	leave, err := q.enter("Reserve")
	defer leave()
	if err != nil {
		return 0, err
	}
	id := max(prefer, 1)
	for ; ; id++ {
		if holder, taken := q.held[id]; (!taken || holder == owner) && q.limits[id] == 0 && q.carriers(id) == 0 {
			break
		}
	}
	q.Release(owner)
	q.held[id] = owner
	return id, nil
}

func (q *fakeQuota) Project(_ context.Context, dir directory.Dir) (uint32, error) {
	leave, err := q.enter("Project")
	defer leave()
	if err != nil {
		return 0, err
	}
	ino, file, err := inodeOf(dir)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	q.tidy()
	return q.ids[ino], nil
}

func (q *fakeQuota) SetProject(_ context.Context, dir directory.Dir, id uint32) error {
	leave, err := q.enter("SetProject")
	defer leave()
	if err != nil {
		return err
	}
	ino, file, err := inodeOf(dir)
	if err != nil {
		return err
	}
	if old, ok := q.files[ino]; ok {
		_ = old.Close()
	}
	q.files[ino], q.ids[ino] = file, id
	return nil
}

func (q *fakeQuota) Raise(_ context.Context, _ directory.Dir, id uint32, size int64) error {
	leave, err := q.enter("Raise")
	defer leave()
	if err == nil {
		q.limits[id] = max(q.limits[id], size)
	}
	return err
}

func (q *fakeQuota) Lift(_ context.Context, _ directory.Dir, id uint32) error {
	leave, err := q.enter("Lift")
	defer leave()
	if err == nil {
		delete(q.limits, id)
	}
	return err
}

func (q *fakeQuota) Usage(_ context.Context, _ directory.Dir, id uint32) (directory.QuotaUsage, error) {
	leave, err := q.enter("Usage")
	defer leave()
	return directory.QuotaUsage{LimitBytes: q.limits[id], Files: q.carriers(id)}, err
}

// faultQuota has the calls of a Quota fail with those of a faultFS.
type faultQuota struct {
	directory.Quota
	fs *faultFS
}

func inner(dir directory.Dir) directory.Dir { return dir.(*faultDir).Dir }

func (q *faultQuota) Check(ctx context.Context, base directory.Dir) error {
	return q.fs.call("Check", "", func() error { return q.Quota.Check(ctx, inner(base)) })
}

func (q *faultQuota) Reserve(ctx context.Context, dir directory.Dir, owner directory.QuotaOwner, prefer uint32) (id uint32, err error) {
	err = q.fs.call("Reserve", "", func() (err error) {
		id, err = q.Quota.Reserve(ctx, inner(dir), owner, prefer)
		return err
	})
	return id, err
}

func (q *faultQuota) Project(ctx context.Context, dir directory.Dir) (id uint32, err error) {
	err = q.fs.call("Project", "", func() (err error) { id, err = q.Quota.Project(ctx, inner(dir)); return err })
	return id, err
}

func (q *faultQuota) SetProject(ctx context.Context, dir directory.Dir, id uint32) error {
	return q.fs.call("SetProject", "", func() error { return q.Quota.SetProject(ctx, inner(dir), id) })
}

func (q *faultQuota) Raise(ctx context.Context, dir directory.Dir, id uint32, size int64) error {
	return q.fs.call("Raise", "", func() error { return q.Quota.Raise(ctx, inner(dir), id, size) })
}

func (q *faultQuota) Lift(ctx context.Context, dir directory.Dir, id uint32) error {
	return q.fs.call("Lift", "", func() error { return q.Quota.Lift(ctx, inner(dir), id) })
}

func (q *faultQuota) Usage(ctx context.Context, dir directory.Dir, id uint32) (u directory.QuotaUsage, err error) {
	err = q.fs.call("Usage", "", func() (err error) { u, err = q.Quota.Usage(ctx, inner(dir), id); return err })
	return u, err
}
