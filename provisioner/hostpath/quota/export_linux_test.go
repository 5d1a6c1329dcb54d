package quota

import (
	"errors"
	"iter"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
)

// InUse yields every project id of a filesystem that files carry or that has a
// limit.
func InUse(t *testing.T, dir directory.Dir) iter.Seq2[uint32, directory.QuotaUsage] {
	t.Helper()
	return func(yield func(uint32, directory.QuotaUsage) bool) {
		err := dir.(directory.Handle).Control("list project ids", func(fd int) error {
			for id := uint32(0); ; id++ {
				var q dqblk
				err := quotactlRecord(fd, cmdGetNextQuota, id, &q)
				if errors.Is(err, unix.ENOENT) {
					return nil
				}
				if err != nil {
					return err
				}
				id = q.ID
				if used, err := inUse(fd, id); err != nil {
					return err
				} else if used && !yield(id, directory.QuotaUsage{Files: q.Files, LimitBytes: int64(q.HardBlocks) * blockSize}) {
					return nil
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Escape takes the file or directory at path, of which the caller is the owner, out of its
// project.
func Escape(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	x, err := getAttributes(fd)
	if err != nil {
		return err
	}
	x.Project, x.Flags = 0, x.Flags&^flagInherit
	return setAttributes(fd, x)
}

// WithOldKernel has f see a kernel without quotactl_fd.
func WithOldKernel(f func()) {
	noFD.Store(true)
	defer noFD.Store(false)
	f()
}
