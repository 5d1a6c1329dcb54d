package directory_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/test/lib/oddfs"
)

func closing(o *directory.Options) { o.CloseBase = true }

// reopen replaces the pool by one that closes its base, as an upgrade does.
func (b *bench) reopen() {
	b.t.Helper()
	must(b.t, b.pool.Close())
	b.pool = newPoolWith(b.t, b.base, closing)
	must(b.t, b.pool.Open(b.ctx))
}

// wantBase checks the mode of the base, and whether the pool knows it.
func (b *bench) wantBase(mode uint32) {
	b.t.Helper()
	info, err := os.Stat(b.base)
	must(b.t, err)
	if got := uint32(info.Sys().(*syscall.Stat_t).Mode & 0o7777); got != mode { //nolint:unconvert // its type differs between machines
		b.t.Errorf("the base has mode %04o, want %04o", got, mode)
	}
	stats, err := b.pool.Stats(b.ctx)
	must(b.t, err)
	if want := mode&0o007 != 0; stats.OpenBase != want {
		b.t.Errorf("the pool says that others can get in: %t, want %t", stats.OpenBase, want)
	}
}

func TestBaseIsClosedToOthersWhenItIsInitialised(t *testing.T) {
	for before, want := range map[uint32]uint32{0o755: 0o750, 0o777: 0o770, 0o1777: 0o1770, 0o2775: 0o2770, 0o700: 0o700, 0o751: 0o750} {
		t.Run(fmt.Sprintf("%04o", before), func(t *testing.T) {
			b := newBench(t)
			must(t, syscall.Chmod(b.base, before))
			must(t, os.Mkdir(b.path("lost+found"), 0o700))
			b.pool = newPoolWith(t, b.base, closing)
			b.create(specFor("team/vol"))
			b.wantBase(want)
		})
	}
}

func TestBaseIsClosedToOthersWhenItHoldsNothingButThePools(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(b *bench)
		left    bool
	}{
		"no volumes": {prepare: func(b *bench) { must(b.t, b.delete(specFor("team/app/vol"))) }},
		"volumes":    {prepare: func(b *bench) { b.data("team/app/vol"); b.create(volumeAt("pvc-2", "team/two")) }},
		"what a tenant has": {prepare: func(b *bench) {
			must(b.t, os.MkdirAll(b.path("team/app/vol/a/b"), 0o755))
		}},
		"an adopted directory": {prepare: func(b *bench) {
			must(b.t, os.Mkdir(b.path("theirs"), 0o755))
			spec := volumeAt("pvc-2", "theirs")
			spec.Adopt = true
			b.create(spec)
		}},
		"a file":                  {func(b *bench) { must(b.t, os.WriteFile(b.path("README"), nil, 0o644)) }, true},
		"a directory":             {func(b *bench) { must(b.t, os.Mkdir(b.path("home"), 0o755)) }, true},
		"a directory beside":      {func(b *bench) { must(b.t, os.Mkdir(b.path("team/home"), 0o755)) }, true},
		"a directory deep beside": {func(b *bench) { must(b.t, os.Mkdir(b.path("team/app/lost+found"), 0o755)) }, true},
		"a retained directory": {func(b *bench) {
			spec := volumeAt("pvc-2", "kept")
			spec.OnDelete = directory.OnDeleteRetain
			b.create(spec)
			must(b.t, b.delete(spec))
		}, true},
		"the directory of a damaged marker": {func(b *bench) { write(b.t, b, "") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(specFor("team/app/vol"))
			c.prepare(b)
			before, want := uint32(0o755), uint32(0o750)
			if c.left {
				want = before
			}
			must(t, syscall.Chmod(b.base, before))
			b.reopen()
			b.wantBase(want)

			must(t, syscall.Chmod(b.base, 0o750)) // by hand, while the pool is in use
			b.wantBase(0o750)
		})
	}
}

func TestBaseIsLeftAloneUnlessThePoolIsToCloseIt(t *testing.T) {
	b := newBench(t)
	must(t, syscall.Chmod(b.base, 0o755))
	b.create(specFor("vol"))
	b.restart()
	must(t, b.pool.Open(b.ctx))
	if info, err := os.Stat(b.base); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of the base: %v, %v", info.Mode(), err)
	}
	if stats, err := b.pool.Stats(b.ctx); err != nil || stats.OpenBase {
		t.Errorf("the pool minds: %+v, %v", stats, err)
	}
}

func TestBaseThatCannotBeClosedIsUsedAsItIs(t *testing.T) {
	for name, change := range map[string]oddfs.Change{"refused": oddfs.Refused, "ignored": oddfs.Ignored} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			must(t, syscall.Chmod(b.base, 0o755))
			filesystem := &oddfs.FS{Filesystem: local(t, b.base), Chmod: change, Spared: []string{".berth", "vol"}}
			b.pool = poolOn(t, filesystem, closing)
			b.create(specFor("vol"))
			b.wantBase(0o755)
		})
	}
}

// Whatever goes wrong while the base is looked at: the pool serves.
func TestClosingTheBaseFailsNoPool(t *testing.T) {
	for nth := 1; nth <= enoughCalls; nth++ {
		b, hit, armed, n := newFastBench(t), false, false, 0
		b.create(specFor("team/app/vol"))
		must(t, b.pool.Close())
		must(t, syscall.Chmod(b.base, 0o755))
		faults := &faultFS{Filesystem: local(t, b.base), before: func(op, name string) error {
			// Reading the markers is the last that open does before.
			armed = armed || op == "ReadFile" && name == "pvc-1.json"
			if armed {
				n++
			}
			if n != nth+1 || op == "Lock" || name == ".berth" {
				return nil
			}
			hit = true
			return errPower
		}}
		faults.serialise()
		b.pool = poolOn(t, faults, closing)
		if err := b.pool.Open(b.ctx); err != nil && b.pool.Opened() {
			err = b.pool.Open(b.ctx) // what failed came after
			must(t, err)
		} else {
			must(t, err)
		}
		must(t, b.pool.Close())
		if faults.open != 0 {
			t.Fatalf("call %d: %d directories were left open", nth, faults.open)
		}
		if !hit {
			return
		}
	}
	t.Fatal("opening never ends")
}
