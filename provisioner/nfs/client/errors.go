package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv3"
	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
)

var (
	// ErrOutcomeUnknown says that a call may or may not have had an effect.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrCrossesMount says that a directory belongs to another filesystem of
	// the server than the one above it.
	ErrCrossesMount = errors.New("is a mount point")
	// ErrTooLarge says that a file is larger than its reader allows.
	ErrTooLarge = errors.New("file too large")
	// ErrUnreachable says that a server is down, silent, or can't be found; the
	// error is an UnreachableError.
	ErrUnreachable = errors.New("unreachable")
	// ErrBusy says that a server that answers others has asked for more time, or
	// has not answered, until the call's time was over.
	ErrBusy = errors.New("the server is busy")
)

// timeoutError is why a context ended that had no deadline of its own: for
// Options.Timeout.
type timeoutError struct{ after time.Duration }

func (e timeoutError) Error() string { return fmt.Sprintf("not done within %s", e.after) }

// timedOut returns the timeoutError for which ctx ended.
func timedOut(ctx context.Context) (e timeoutError, ok bool) {
	ok = errors.As(context.Cause(ctx), &e)
	return e, ok
}

// UnreachableError says that a server did not answer, or could not be connected
// to. errors.Is(err, ErrUnreachable) finds it.
type UnreachableError struct {
	// Server is host:port.
	Server string
	// After is how long it was silent; 0 when Err says what happened.
	After time.Duration
	Err   error
}

func (e *UnreachableError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("server %s: %v", e.Server, e.Err)
	}
	return fmt.Sprintf("server %s did not answer within %s", e.Server, e.After)
}

// Unwrap makes errors.Is find ErrUnreachable, and what happened.
func (e *UnreachableError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrUnreachable}
	}
	return []error{ErrUnreachable, e.Err}
}

const (
	hintInsecure = "export it with the option insecure, or let this process bind ports below 1024 (CAP_NET_BIND_SERVICE)"
	hintSquash   = "a server with root_squash does what user nobody may: use no_root_squash, or a directory that the squashed user owns"
	hintMode     = "a mode can be changed by the owner alone, who is another than Berth's user when the server squashes root (then use no_root_squash), and not even by the owner where the server's ACLs forbid it (ZFS: aclmode=restricted; set passthrough or discard)"
)

// Error is a status other than success. It unwraps to the errno that a local
// filesystem would answer, so that errors.Is(err, fs.ErrNotExist) and
// errors.Is(err, syscall.ENOTEMPTY) work.
type Error struct {
	// Op is what was asked for.
	Op string
	// Name is what it was asked for, if it had a name.
	Name string
	// Status is the protocol's number for what went wrong.
	Status uint32
	// StatusName is the protocol's name for it.
	StatusName string
	// Errno is what it means.
	Errno syscall.Errno
	// Hint says what to do about it, if there is something.
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Name != "" {
		fmt.Fprintf(&b, " %q", e.Name)
	}
	fmt.Fprintf(&b, ": %s: %s", e.Errno.Error(), e.StatusName)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Errno }

// errnos holds the statuses that are not the errno of the same number. Versions
// 3 and 4 share most of them.
var errnos = map[uint32]syscall.Errno{
	63: syscall.ENAMETOOLONG, 66: syscall.ENOTEMPTY, 69: syscall.EDQUOT, 70: syscall.ESTALE, 71: syscall.EREMOTE,
	10001: syscall.ESTALE, // BADHANDLE
	10003: syscall.EAGAIN, // BAD_COOKIE: read the directory again
	10004: syscall.EOPNOTSUPP,
	10007: syscall.EINVAL, // BADTYPE
	10008: syscall.EAGAIN, // JUKEBOX, DELAY
	10010: syscall.EAGAIN, // DENIED
	10012: syscall.EAGAIN, // LOCKED
	10013: syscall.EAGAIN, // GRACE
	10014: syscall.ESTALE, // FHEXPIRED
	10016: syscall.EACCES, // WRONGSEC
	10019: syscall.ESTALE, // MOVED
	10027: syscall.EAGAIN, // NOT_SAME: the directory changed
	10029: syscall.ELOOP,  // SYMLINK
	10032: syscall.EOPNOTSUPP,
	10036: syscall.EIO,    // BADXDR
	10039: syscall.EINVAL, // BADOWNER
	10040: syscall.EINVAL, // BADCHAR
	10041: syscall.EINVAL, // BADNAME
	10046: syscall.EBUSY,  // FILE_OPEN
}

func errnoOf(status uint32) syscall.Errno {
	if errno, ok := errnos[status]; ok {
		return errno
	}
	if status < 35 { // the numbers that every Unix agrees about
		return syscall.Errno(status)
	}
	return syscall.EIO
}

func newError(op, name string, status uint32, statusName string) *Error {
	if statusName == "" {
		statusName = fmt.Sprintf("status %d", status)
	}
	e := &Error{Op: op, Name: name, Status: status, StatusName: statusName, Errno: errnoOf(status)}
	if e.Errno == syscall.EACCES || e.Errno == syscall.EPERM {
		e.Hint = hintSquash
	}
	return e
}

func error3(op, name string, status nfsv3.Nfsstat3) error {
	if status == nfsv3.NFS3_OK {
		return nil
	}
	return newError(op, name, uint32(status), nfsv3.Nfsstat3_name[status]) //nolint:gosec // a number for a number
}

func error4(op, name string, status nfsv4.Nfsstat4) error {
	if status == nfsv4.NFS4_OK {
		return nil
	}
	return newError(op, name, uint32(status), nfsv4.Nfsstat4_name[status]) //nolint:gosec // a number for a number
}

// busy is the error of a call that was answered err, which asks for time, until
// ctx ended.
func busy(ctx context.Context, err error) error {
	if timeout, ok := timedOut(ctx); ok {
		return fmt.Errorf("%w: %w, %w", ErrBusy, timeout, err)
	}
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}

// failed names the operation in an error that is not a status.
func failed(op, name string, err error) error {
	if name == "" {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s %q: %w", op, name, err)
}

// refused is the error for what this package itself refuses.
func refused(op, name string, errno syscall.Errno) error {
	return fmt.Errorf("%s %q: %w", op, name, errno)
}

// hasStatus reports whether err is one of the given statuses.
func hasStatus(err error, statuses ...uint32) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, s := range statuses {
		if e.Status == s {
			return true
		}
	}
	return false
}
