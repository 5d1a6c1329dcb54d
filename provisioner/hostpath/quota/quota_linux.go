package quota

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
)

// New returns quotas by project ids of r. All pools of a process share one, so
// that they never take the same id.
func New(r Range) directory.Quota {
	return &projects{
		ids: r,
		held: holders{
			ids: map[directory.QuotaOwner]uint32{},
			of:  map[uint32]directory.QuotaOwner{},
		},
	}
}

type projects struct {
	ids  Range
	held holders
}

func (p *projects) Check(ctx context.Context, base directory.Dir) error {
	return control(ctx, base, "check for project quotas", check)
}

func (p *projects) Hold(owner directory.QuotaOwner, id uint32) { p.held.hold(owner, id) }

func (p *projects) Release(owner directory.QuotaOwner) { p.held.release(owner) }

func (p *projects) Reserve(ctx context.Context, dir directory.Dir, owner directory.QuotaOwner, prefer uint32) (id uint32, _ error) {
	err := control(ctx, dir, "look for a free project id", func(fd int) (err error) {
		id, err = p.held.reserve(owner, p.ids, prefer, func(id uint32) (bool, error) { return inUse(fd, id) })
		return err
	})
	return id, err
}

func (p *projects) Project(ctx context.Context, dir directory.Dir) (id uint32, _ error) {
	err := control(ctx, dir, "read the project id", func(fd int) error {
		x, err := getAttributes(fd)
		if x.Flags&flagInherit != 0 {
			id = x.Project
		}
		return err
	})
	return id, err
}

func (p *projects) SetProject(ctx context.Context, dir directory.Dir, id uint32) error {
	return control(ctx, dir, "set the project id", func(fd int) error {
		x, err := getAttributes(fd)
		if err != nil {
			return err
		}
		x.Project = id
		x.Flags |= flagInherit
		err = setAttributes(fd, x)
		if errors.Is(err, unix.EINVAL) {
			return unsupported("the filesystem refuses project id %d: it is an XFS made without projid32bit, or this process is in a user namespace", id)
		}
		return err
	})
}

func (p *projects) Raise(ctx context.Context, dir directory.Dir, id uint32, size int64) error {
	return control(ctx, dir, "set the limit", func(fd int) error {
		q, err := getQuota(fd, id)
		if err != nil {
			return err
		}
		want := (uint64(max(size, 1)) + blockSize - 1) / blockSize
		if q.HardBlocks >= want && (q.SoftBlocks == 0 || q.SoftBlocks >= want) {
			return nil
		}
		return setLimit(fd, id, max(want, q.HardBlocks))
	})
}

func (p *projects) Lift(ctx context.Context, dir directory.Dir, id uint32) error {
	return control(ctx, dir, "remove the limit", func(fd int) error { return setLimit(fd, id, 0) })
}

func (p *projects) Usage(ctx context.Context, dir directory.Dir, id uint32) (u directory.QuotaUsage, _ error) {
	err := control(ctx, dir, "read the usage", func(fd int) error {
		q, err := getQuota(fd, id)
		u = directory.QuotaUsage{
			UsedBytes:  int64(q.Space),                  //nolint:gosec // a disk holds less
			LimitBytes: int64(q.HardBlocks * blockSize), //nolint:gosec // it was an int64 when it was set
			Files:      q.Files,
		}
		return err
	})
	return u, err
}

// control calls f with the descriptor of dir. When the error says that
// something is not there, it says so in an administrator's words.
func control(ctx context.Context, dir directory.Dir, op string, f func(fd int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	handle, ok := dir.(directory.Handle)
	if !ok {
		return unsupported("only a directory of this machine's disks can be limited")
	}
	return handle.Control(op, func(fd int) error { return explain(fd, f(fd)) })
}

// inUse reports whether a file carries id, or a limit is set for it. It asks
// for the next record, which unlike asking for this very one makes none.
func inUse(fd int, id uint32) (bool, error) {
	var q dqblk
	err := quotactlRecord(fd, cmdGetNextQuota, id, &q)
	switch {
	case err == nil && q.ID != id, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EINVAL): // before Linux 4.6
		q, err = getQuota(fd, id)
	}
	if err != nil {
		return false, err
	}
	return q.Files != 0 || q.Space != 0 || q.HardBlocks != 0 || q.SoftBlocks != 0 || q.HardFiles != 0 || q.SoftFiles != 0, nil
}

// getQuota returns the record of id; that there is none is an empty one.
func getQuota(fd int, id uint32) (dqblk, error) {
	var q dqblk
	err := quotactlRecord(fd, cmdGetQuota, id, &q)
	if errors.Is(err, unix.ENOENT) {
		return dqblk{}, nil
	}
	return q, err
}

// setLimit sets the hard limit of id in blocks, and no soft limit: there is no
// time after which a volume would shrink.
func setLimit(fd int, id uint32, blocks uint64) error {
	q := dqblk{HardBlocks: blocks, Valid: validBlockLimits}
	return quotactlRecord(fd, cmdSetQuota, id, &q)
}

func unsupported(format string, args ...any) error {
	return &directory.QuotaUnsupportedError{Reason: fmt.Sprintf(format, args...)}
}
