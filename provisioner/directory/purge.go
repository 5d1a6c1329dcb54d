package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/berth-storage/berth/internal/crashpoint"
)

const (
	purgeRetryMin = time.Second
	purgeRetryMax = 5 * time.Minute
	// maxFailures bounds how many failures one pass reports.
	maxFailures = 10
)

// Run empties the trash whenever something lands in it, first of all what an
// earlier process left, until ctx ends. What can't be removed is tried again
// after a while.
func (p *Pool) Run(ctx context.Context) error {
	delay := purgeRetryMin
	for ctx.Err() == nil {
		var retry <-chan time.Time
		stop := func() bool { return true }
		switch err := p.PurgeTrash(ctx); {
		case err == nil, errors.Is(err, ErrNotInitialised), ctx.Err() != nil:
			delay = purgeRetryMin
		default:
			p.log.Error(err, "Could not empty the trash", "pool", p.options.Name, "retryAfter", delay)
			timer := time.NewTimer(delay)
			retry, stop = timer.C, timer.Stop
			delay = min(2*delay, purgeRetryMax)
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-retry:
		}
		stop()
	}
	return nil
}

// PurgeTrash removes what is in the trash. It never opens a mount point and
// follows no link; what holds a mount point, or resists otherwise, stays, and
// the error names it.
//
// Trees may be of any width and depth: a directory that is not empty is moved
// up into the trash itself and emptied there, so no more than two directories
// are open at a time, and nothing needs to be remembered. After a crash the
// next call goes on with what is there.
func (p *Pool) PurgeTrash(ctx context.Context) error {
	s, err := p.enter(ctx, false)
	if err != nil {
		return err
	}
	defer s.close()
	trash, err := s.admin.Open(ctx, trashName)
	if err != nil {
		return fmt.Errorf("open the trash: %w", err)
	}
	defer trash.Close()
	for {
		pass := &purgePass{pool: p, trash: trash}
		if err := pass.run(ctx); err != nil {
			return err
		}
		if !pass.progress {
			return errors.Join(pass.failures...)
		}
	}
}

// purgePass goes over the trash once. A tenant may still be writing into what
// is removed, so a directory that has grown again waits for the next pass, and
// holds up nothing else.
type purgePass struct {
	pool     *Pool
	trash    Dir
	progress bool
	failures []error
}

func (p *purgePass) run(ctx context.Context) error {
	for e, err := range p.trash.ReadDir(ctx) {
		if err != nil {
			return fmt.Errorf("read the trash: %w", err)
		}
		full, err := p.remove(ctx, p.trash, e)
		if err != nil {
			return err
		}
		if !full {
			continue
		}
		if err := p.empty(ctx, e.Name); err != nil {
			return err
		}
		if _, err := p.remove(ctx, p.trash, e); err != nil {
			return err
		}
	}
	return nil
}

// empty takes everything out of the directory name of the trash.
func (p *purgePass) empty(ctx context.Context, name string) error {
	dir, err := p.trash.Open(ctx, name)
	if err != nil {
		p.note(err)
		return ctx.Err()
	}
	defer dir.Close()
	for child, err := range dir.ReadDir(ctx) {
		if err != nil {
			p.note(err)
			return ctx.Err()
		}
		full, err := p.remove(ctx, dir, child)
		if err != nil {
			return err
		}
		if !full {
			continue
		}
		if err := p.pool.limiter.Wait(ctx); err != nil {
			return err
		}
		if err := dir.Rename(ctx, child.Name, p.trash, trashEntry(trashOrigin(name))); err != nil {
			p.note(err)
			continue
		}
		p.progress = true
	}
	return nil
}

// remove removes the entry e of dir, unless it is a directory with something in
// it: then it returns full. What else fails is noted, and the pass goes on; the
// error is that of ctx.
func (p *purgePass) remove(ctx context.Context, dir Dir, e Entry) (full bool, _ error) {
	if err := p.pool.limiter.Wait(ctx); err != nil {
		return false, err
	}
	var err error
	if e.Type.IsDir() {
		err = dir.Rmdir(ctx, e.Name)
	} else if err = dir.Remove(ctx, e.Name); errors.Is(err, syscall.EISDIR) {
		err = dir.Rmdir(ctx, e.Name)
	}
	switch {
	case err == nil:
		p.progress = true
		crashpoint.Reach(crashpoint.TrashPartlyPurged)
		return false, nil
	case notEmpty(err):
		return true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		// Gone, or replaced since it was listed: the next pass sees.
		p.progress = true
		return false, nil
	case errors.Is(err, syscall.EBUSY):
		err = fmt.Errorf("%w: %w", ErrCrossesMount, err)
	}
	p.note(err)
	return false, ctx.Err()
}

func (p *purgePass) note(err error) {
	if len(p.failures) < maxFailures {
		p.failures = append(p.failures, fmt.Errorf("purge the trash: %w", err))
	}
}

// trashOrigin returns the volume in a name that trashEntry made.
func trashOrigin(name string) string {
	if len(name) > trashID+1 && name[trashID] == '-' {
		return name[trashID+1:]
	}
	return "unknown"
}
