package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Local is a directory of this machine.
//
// It opens one component at a time, relative to the handle of the directory
// above, and lets the kernel refuse symbolic links and mount points as part of
// the same call (openat2), so that there is no moment between a check and its
// use. os.Root, which serves the same purpose for whole paths, follows links
// that stay below its root, and therefore would let one volume stand in for
// another.
type Local struct {
	base         string
	requireMount bool

	mu      sync.Mutex
	mounted mountIdentity // the last base that was found to be mounted
}

// LocalOptions are the choices NewLocal leaves to an administrator.
type LocalOptions struct {
	// RequireMount refuses a base that is not the root of a filesystem (or of
	// a btrfs subvolume), so that a disk that failed to mount can't be
	// mistaken for an empty one. It looks at the filesystem rather than at the
	// mount, since in a container every base is a mount point.
	RequireMount bool
}

// NewLocal returns the filesystem whose base is the directory named base, an
// absolute, clean path other than "/". The directory is not looked at yet.
func NewLocal(base string, opts LocalOptions) (*Local, error) {
	if err := CheckBase(base); err != nil {
		return nil, err
	}
	return &Local{base: base, requireMount: opts.RequireMount}, nil
}

// Root opens the base.
func (l *Local) Root(ctx context.Context) (Dir, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(l.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("base %s is a symbolic link or a file, name the directory itself: %w", l.base, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open base %s: %w", l.base, err)
	}
	root, err := newLocalDir(fd, l.base)
	if err != nil {
		return nil, err
	}
	if l.requireMount {
		if err := l.checkMounted(root); err != nil {
			return nil, errors.Join(err, root.Close())
		}
	}
	return root, nil
}

// Space reports the size of the filesystem that holds the base.
func (l *Local) Space(ctx context.Context) (Space, error) {
	root, err := l.Root(ctx)
	if err != nil {
		return Space{}, err
	}
	defer root.Close()
	var (
		st    unix.Statfs_t
		about unix.Stat_t
	)
	if err := root.(*localDir).do("statfs", "", func(fd int) error {
		if err := unix.Fstat(fd, &about); err != nil {
			return err
		}
		return unix.Fstatfs(fd, &st)
	}); err != nil {
		return Space{}, err
	}
	size := uint64(st.Frsize) //nolint:gosec // a block's size is positive
	return Space{Total: st.Blocks * size, Free: st.Bavail * size, Device: about.Dev}, nil
}

// localDir is a Dir by way of the *at system calls.
type localDir struct {
	file *os.File
	conn syscall.RawConn
}

func newLocalDir(fd int, name string) (*localDir, error) {
	file := os.NewFile(uintptr(fd), name)
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &localDir{file: file, conn: conn}, nil
}

// do calls f with the directory's descriptor, which can't be closed meanwhile.
func (d *localDir) do(op, name string, f func(fd int) error) error {
	var err error
	if closed := d.conn.Control(func(fd uintptr) {
		_, err = retryEINTR(func() (struct{}, error) { return struct{}{}, f(int(fd)) })
	}); closed != nil {
		err = closed
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: filepath.Join(d.file.Name(), name), Err: err}
	}
	return nil
}

// at is do for an operation on the entry name.
func (d *localDir) at(ctx context.Context, op, name string, f func(fd int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return d.do(op, name, f)
}

// Control calls f with the directory's descriptor: see Handle.
func (d *localDir) Control(op string, f func(fd int) error) error { return d.do(op, "", f) }

func (d *localDir) Stat(ctx context.Context) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	var st unix.Stat_t
	err := d.do("stat", "", func(fd int) error { return unix.Fstat(fd, &st) })
	return infoOf(&st), err
}

func (d *localDir) Lstat(ctx context.Context, name string) (Info, error) {
	var st unix.Stat_t
	err := d.at(ctx, "lstat", name, func(fd int) error {
		return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return infoOf(&st), err
}

func (d *localDir) Open(ctx context.Context, name string) (Dir, error) {
	var child int
	if err := d.at(ctx, "open", name, func(fd int) (err error) {
		child, err = openChild(fd, name)
		return err
	}); err != nil {
		return nil, err
	}
	return newLocalDir(child, filepath.Join(d.file.Name(), name))
}

func (d *localDir) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	return d.at(ctx, "mkdir", name, func(fd int) error { return unix.Mkdirat(fd, name, uint32(perm.Perm())) })
}

// readBatch is how many entries ReadDir holds at once.
const readBatch = 512

func (d *localDir) ReadDir(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		// A descriptor of its own, since it holds the position.
		var self int
		if err := d.do("open", "", func(fd int) (err error) {
			self, err = unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			return err
		}); err != nil {
			yield(Entry{}, err)
			return
		}
		dir := os.NewFile(uintptr(self), d.file.Name())
		defer dir.Close()
		for {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
			batch, err := dir.ReadDir(readBatch)
			for _, e := range batch {
				if !yield(Entry{Name: e.Name(), Type: e.Type()}, nil) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
		}
	}
}

func (d *localDir) Remove(ctx context.Context, name string) error {
	return d.at(ctx, "remove", name, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
}

func (d *localDir) Rmdir(ctx context.Context, name string) error {
	return d.at(ctx, "rmdir", name, func(fd int) error {
		err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		if err == unix.EEXIST { // what POSIX allows instead
			return unix.ENOTEMPTY
		}
		return err
	})
}

func (d *localDir) Rename(ctx context.Context, name string, to Dir, newName string) error {
	target, ok := to.(*localDir)
	if !ok {
		return &fs.PathError{Op: "rename", Path: name, Err: syscall.EXDEV}
	}
	return d.at(ctx, "rename", name, func(fd int) error {
		return target.at(ctx, "rename to", newName, func(toFD int) error {
			return renameNoReplace(fd, name, toFD, newName)
		})
	})
}

func (d *localDir) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	var fd int
	if err := d.at(ctx, "open", name, func(dir int) (err error) {
		// O_NONBLOCK: a FIFO must not hold the caller.
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == unix.ENXIO { // a socket
			return unix.EINVAL
		}
		return err
	}); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), filepath.Join(d.file.Name(), name))
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: file.Name(), Err: syscall.EINVAL}
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &fs.PathError{Op: "read", Path: file.Name(), Err: ErrTooLarge}
	}
	return data, nil
}

func (d *localDir) WriteFile(ctx context.Context, name string, data []byte) error {
	temp := TempPrefix + rand.Text()
	err := d.at(ctx, "write", name, func(fd int) error { return writeSynced(fd, temp, data) })
	if err == nil {
		err = d.do("rename to", name, func(fd int) error { return unix.Renameat(fd, temp, fd, name) })
	}
	if err != nil {
		_ = d.do("remove", temp, func(fd int) error { return unix.Unlinkat(fd, temp, 0) })
		return err
	}
	return d.Sync(ctx)
}

func (d *localDir) SetAttr(ctx context.Context, attr Attr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if attr.UID != nil || attr.GID != nil {
		if err := d.do("chown", "", func(fd int) error { return unix.Fchown(fd, ownerOf(attr.UID), ownerOf(attr.GID)) }); err != nil {
			return err
		}
	}
	return d.do("chmod", "", func(fd int) error { return unix.Fchmod(fd, attr.Mode&0o7777) })
}

func (d *localDir) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.do("fsync", "", unix.Fsync)
}

// Lock uses flock(2), which the kernel releases however the process ends.
func (d *localDir) Lock(ctx context.Context, name string) (io.Closer, error) {
	var lock int
	err := d.at(ctx, "lock", name, func(fd int) (err error) {
		lock, err = unix.Openat(fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		if err = unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = unix.Close(lock)
		}
		if err == unix.EWOULDBLOCK {
			return ErrLocked
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(lock), name), nil
}

func (d *localDir) Close() error { return d.file.Close() }

// CheckBase says whether path can be the base of a pool: absolute, clean, and
// not the root of everything.
func CheckBase(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("base %q: not an absolute path", path)
	case filepath.Clean(path) != path:
		return fmt.Errorf("base %q: write it as %q", path, filepath.Clean(path))
	case path == "/":
		return errors.New(`base "/": a pool needs a directory of its own`)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("base %q: holds a NUL", path)
	}
	return nil
}
