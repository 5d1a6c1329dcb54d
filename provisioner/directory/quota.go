package directory

import (
	"context"
	"errors"
)

// QuotaMode says whether a volume's size is to be enforced.
type QuotaMode string

// The values of QuotaMode. The zero value is as good as QuotaNone.
const (
	// QuotaAuto enforces the size where the filesystem can.
	QuotaAuto QuotaMode = "auto"
	// QuotaRequired refuses to make a volume whose size can't be enforced.
	QuotaRequired QuotaMode = "required"
	// QuotaNone does not enforce the size.
	QuotaNone QuotaMode = "none"
)

// Valid reports whether q is one of the known values.
func (q QuotaMode) Valid() bool { return q == QuotaAuto || q == QuotaRequired || q == QuotaNone }

// Quota limits how much directories may hold. Package quota implements it for
// the disks of this machine.
//
// A limit belongs to a project id, a number by which a filesystem adds up what
// all files that carry it occupy. A directory is given its id while it is
// empty, and what is made in it later inherits the id, so that nothing ever has
// to walk over a tenant's files.
//
// Methods that are given a directory act on the filesystem it is on, and fail
// with a *QuotaUnsupportedError when that can't do what is asked. They may be
// called by several goroutines at once.
type Quota interface {
	// Check returns nil when limits set in the filesystem of base, where
	// volumes are made, are enforced.
	Check(ctx context.Context, base Dir) error

	// Hold keeps id for owner, whose marker names it, unless somebody else
	// holds it.
	Hold(owner QuotaOwner, id uint32)

	// Reserve returns an id that nothing on the filesystem of dir carries and
	// nobody else holds, and holds it for owner. It is prefer, if that will do;
	// 0 prefers none.
	Reserve(ctx context.Context, dir Dir, owner QuotaOwner, prefer uint32) (uint32, error)

	// Release ends what Hold and Reserve began. An id that files still carry
	// remains out of use.
	Release(owner QuotaOwner)

	// Project returns the id that what is made in dir inherits, or 0.
	Project(ctx context.Context, dir Dir) (uint32, error)

	// SetProject gives id to dir, and to everything made in it from now on.
	SetProject(ctx context.Context, dir Dir, id uint32) error

	// Raise sees to it that what carries id may occupy size bytes, and never
	// lowers a limit.
	Raise(ctx context.Context, dir Dir, id uint32, size int64) error

	// Lift removes the limit of id.
	Lift(ctx context.Context, dir Dir, id uint32) error

	// Usage reports what carries id, and its limit.
	Usage(ctx context.Context, dir Dir, id uint32) (QuotaUsage, error)
}

// QuotaOwner is whom a project id is held for.
type QuotaOwner struct {
	// Pool is the id of a pool, Volume the name of a PersistentVolume.
	Pool, Volume string
}

// QuotaUsage is what a filesystem knows of a project id.
type QuotaUsage struct {
	// UsedBytes and Files are what carries the id, LimitBytes is what may; 0
	// is no limit.
	UsedBytes, LimitBytes int64
	Files                 uint64
}

// QuotaUnsupportedError says that a filesystem, a kernel or a process can't
// limit directories.
type QuotaUnsupportedError struct {
	// Reason says what is missing and how to get it, for an administrator.
	Reason string
}

// UnenforcedByClass is the Unenforced of volumes with QuotaNone.
const UnenforcedByClass = "its class says so"

// errNoQuota is for pools without Options.Quota.
var errNoQuota = &QuotaUnsupportedError{Reason: "this driver can't limit directories"}

// Error returns the reason.
func (e *QuotaUnsupportedError) Error() string { return e.Reason }

// quotaUnsupported returns why err says that there can be no limit, if it does.
func quotaUnsupported(err error) (reason string, ok bool) {
	var unsupported *QuotaUnsupportedError
	if !errors.As(err, &unsupported) {
		return "", false
	}
	return unsupported.Reason, true
}

// quotaField is how a user would write what has to change.
const quotaField = "StorageClass parameter quota"

// enforced reports whether the filesystem holds the volume to its size.
func (m Marker) enforced() bool { return m.Project != 0 && m.Unenforced == "" }

// QuotaState says whether the size of the volume is enforced, in one line:
// "enforced", or "none: " and why not.
func (m Marker) QuotaState() string {
	switch {
	case m.Unenforced != "":
		return "none: " + m.Unenforced
	case m.Project == 0:
		return "none: the volume was made without a quota"
	}
	return "enforced"
}
