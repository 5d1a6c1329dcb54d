package directory

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
)

// Filesystem is where a Pool keeps its directories.
type Filesystem interface {
	// Root opens the base directory. It fails with an error that wraps
	// fs.ErrNotExist when there is none, and never follows a symbolic link in
	// place of the base itself.
	Root(ctx context.Context) (Dir, error)

	// Space reports the size of the filesystem that holds the base.
	Space(ctx context.Context) (Space, error)
}

// Space is the size of a filesystem in bytes.
type Space struct {
	Total, Free uint64
	// Device tells the filesystems of one machine apart, as st_dev of stat(2)
	// does; 0 when nobody can say.
	Device uint64
}

// Dir is an open directory, which stays the same directory when it is renamed
// or when the path that led to it is replaced.
//
// A name is one component of a path: a name that is empty, ".", ".." or that
// holds a "/" or a NUL fails with syscall.EINVAL. No method follows a symbolic
// link, in any component, ever.
//
// Errors wrap fs.ErrNotExist, fs.ErrExist and the syscall.Errno of the
// operation as far as there is one, whatever the protocol underneath calls it.
// An error means that the call had no effect, unless it wraps
// ErrOutcomeUnknown or comes from ctx, and is about what was asked for, unless it
// wraps ErrNoAnswer. An implementation that retransmits must
// not answer ErrExist or ErrNotExist for what an earlier transmission of the
// same call did: it returns ErrOutcomeUnknown when it can't tell.
//
// Methods may be called by several goroutines at once.
type Dir interface {
	// Stat describes the directory itself.
	Stat(ctx context.Context) (Info, error)

	// Lstat describes what name is; a symbolic link is a symbolic link.
	Lstat(ctx context.Context, name string) (Info, error)

	// Open opens the directory name. Anything else, a symbolic link too, fails
	// with syscall.ENOTDIR or syscall.ELOOP; a directory on which another
	// filesystem, or another part of the same, is mounted fails with
	// ErrCrossesMount.
	Open(ctx context.Context, name string) (Dir, error)

	// Mkdir makes the directory name. The server, a umask or the directory's
	// setgid bit may take away from, or add to, perm: use SetAttr afterwards
	// when the mode matters.
	Mkdir(ctx context.Context, name string, perm fs.FileMode) error

	// ReadDir yields the entries, without "." and "..", in no order and in
	// bounded memory, and ends after the first error. It may or may not see an
	// entry that is added or removed meanwhile.
	ReadDir(ctx context.Context) iter.Seq2[Entry, error]

	// Remove removes name, which must not be a directory: that fails with
	// syscall.EISDIR.
	Remove(ctx context.Context, name string) error

	// Rmdir removes the directory name, which must be empty: otherwise it
	// fails with syscall.ENOTEMPTY, and with syscall.ENOTDIR for anything that
	// is no directory.
	Rmdir(ctx context.Context, name string) error

	// Rename moves name, whatever it is, to newName in to, which is a
	// directory of the same filesystem. It fails with fs.ErrExist when newName
	// exists. Where that can't be had atomically an implementation looks
	// first, so the caller must see to it that nobody else adds newName.
	Rename(ctx context.Context, name string, to Dir, newName string) error

	// ReadFile returns the content of the regular file name. It fails with
	// ErrTooLarge when there are more than limit bytes, and with syscall.ELOOP
	// or syscall.EINVAL, and without waiting, for anything but a regular file.
	ReadFile(ctx context.Context, name string, limit int64) ([]byte, error)

	// WriteFile creates or replaces the file name, with mode 0600, atomically
	// and durably: once it returns, data is there after a power failure. A
	// crash may leave a file whose name begins with TempPrefix.
	WriteFile(ctx context.Context, name string, data []byte) error

	// SetAttr changes owner and mode of the directory itself.
	SetAttr(ctx context.Context, attr Attr) error

	// Sync makes the directory's entries and attributes durable.
	Sync(ctx context.Context) error

	// Lock takes the lock that the regular file name stands for, which is
	// created when there is none, and fails with ErrLocked, at once, when
	// another process holds it. The lock goes with the Closer, or with the
	// process. A filesystem that has no locks returns a Closer that does
	// nothing.
	Lock(ctx context.Context, name string) (io.Closer, error)

	// Close releases the handle.
	Close() error
}

// Handle is a Dir of this machine, for system calls that Dir has no words for.
type Handle interface {
	Dir
	// Control calls f with the directory's descriptor, which stays open
	// meanwhile, again when it was interrupted. op is what f does, for errors.
	Control(op string, f func(fd int) error) error
}

// Info describes a file or a directory.
type Info struct {
	// Type holds the type bits of a fs.FileMode: fs.ModeDir, fs.ModeSymlink, …
	Type fs.FileMode
	// Mode holds the twelve bits that chmod(2) knows.
	Mode uint32
	UID  uint32
	GID  uint32
}

// Entry is what ReadDir knows of a directory's entry.
type Entry struct {
	Name string
	// Type is fs.ModeDir for a directory and anything else for a file; it is a
	// hint, and fs.ModeIrregular when the filesystem does not say.
	Type fs.FileMode
}

// Attr is what SetAttr sets.
type Attr struct {
	// Mode holds the twelve bits that chmod(2) knows, set last since a change
	// of owner may clear some of them.
	Mode uint32
	// UID and GID are left as they are when nil.
	UID, GID *uint32
}

// TempPrefix begins the names of the files that WriteFile may leave behind.
const TempPrefix = ".tmp-"

var (
	// ErrCrossesMount says that a directory is a mount point.
	ErrCrossesMount = errors.New("is a mount point")
	// ErrNotMounted says that a base is not the root of a filesystem, which it has to
	// be.
	ErrNotMounted = errors.New("is not a mount point")
	// ErrTooLarge says that a file is larger than its reader allows.
	ErrTooLarge = errors.New("file too large")
	// ErrLocked says that another process holds a lock.
	ErrLocked = errors.New("locked by another process")
	// ErrNoAnswer says that whoever keeps the directory could not be asked, so that
	// an error says nothing about it.
	ErrNoAnswer = errors.New("no answer")
	// ErrOutcomeUnknown says that a call may or may not have had an effect.
	ErrOutcomeUnknown = errors.New("outcome unknown")
)
