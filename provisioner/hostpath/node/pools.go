package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// reports says which pools the directories hold, all looked at at once.
func (s *Server) reports(ctx context.Context) []wire.PoolReport {
	all := make([]wire.PoolReport, len(s.ledger.places))
	var group sync.WaitGroup
	for i, p := range s.ledger.places {
		group.Go(func() { all[i] = p.report(ctx) })
	}
	group.Wait()
	return all
}

// report sends reports with the answer to the call of ctx. An answer without them
// is that of an older server, which the caller can deal with.
func (s *Server) report(ctx context.Context, reports []wire.PoolReport) {
	if err := wire.SendPools(ctx, reports); err != nil {
		s.options.Log.V(1).Info("Could not say which pools there are", "reason", err.Error())
	}
}

// report looks which pool the directory holds. Of a disk that does not answer
// nothing is known.
func (p *place) report(ctx context.Context) wire.PoolReport {
	r := wire.PoolReport{Pool: p.pool, Directory: p.base}
	if p.spared() {
		return r
	}
	_, err := ask(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Open(ctx) })
	switch {
	case err == nil:
		r.ID = p.ID()
	case isGone(err):
		r.Gone = true
	}
	return r
}

// isGone reports whether err says that a directory is not the pool it was, if it
// ever was one.
func isGone(err error) bool {
	for _, known := range []error{directory.ErrNotInitialised, directory.ErrWrongPool, directory.ErrNotMounted, fs.ErrNotExist, syscall.ENOTDIR} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// checkPool refuses a volume that the caller says lies in another pool than the
// one that holds its marker here: this is a copy, or that was given a new id.
func (p *place) checkPool(ctx context.Context, volume string) error {
	want, told := wire.PoolID(ctx)
	if !told {
		return nil
	}
	has, err := p.Has(ctx, volume)
	if err != nil || !has || p.ID() == want {
		return err
	}
	return fmt.Errorf("the PersistentVolume says it lies in the pool with the id %q, that of %s is %s: %w", want, p.base, p.ID(), directory.ErrNotOwned)
}
