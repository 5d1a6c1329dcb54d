package directory_test

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-storage/berth/provisioner/directory"
)

// newRecheckBench is a bench whose pool looks at its base now and then, and
// the number of looks.
func newRecheckBench(t *testing.T, recheck time.Duration) (*bench, *faultFS, *atomic.Int32) {
	t.Helper()
	base := t.TempDir()
	looks := &atomic.Int32{}
	fs := &faultFS{Filesystem: local(t, base), before: func(op, _ string) error {
		if op == "Root" {
			looks.Add(1)
		}
		return nil
	}}
	pool := poolOn(t, fs, func(o *directory.Options) { o.Recheck = recheck })
	return &bench{t: t, base: base, pool: pool, ctx: t.Context()}, fs, looks
}

func TestOperationsShareALookAtTheBaseForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, fs, looks := newRecheckBench(t, time.Second)
		b.create(volumeAt("pvc-first", "first"))
		before := looks.Load()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { b.create(volumeAt(fmt.Sprint("pvc-", i), fmt.Sprint(i))) })
		}
		wg.Wait()
		if n := looks.Load() - before; n != 0 {
			t.Errorf("20 volumes within a moment took %d looks", n)
		}
		time.Sleep(time.Second + 1)
		b.create(volumeAt("pvc-later", "later"))
		if n := looks.Load() - before; n != 1 {
			t.Errorf("a volume later on took %d looks", n)
		}
		must(t, b.pool.Close())
		if fs.open != 0 {
			t.Errorf("%d directories are open after Close", fs.open)
		}
	})
}

func TestBaseThatWasReplacedIsNoticedAtTheNextLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, _ := newRecheckBench(t, time.Second)
		b.create(volumeAt("pvc-first", "first"))
		must(t, os.Rename(b.path(".berth"), b.path("moved")))
		time.Sleep(time.Second + 1)
		if _, err := b.pool.Create(b.ctx, volumeAt("pvc-second", "second")); err == nil {
			t.Error("a volume was made in a base that is no pool any more")
		}
		must(t, b.pool.Close())
	})
}
