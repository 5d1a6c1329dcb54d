package directory_test

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// raceTries is how often each race is run.
const raceTries = 2000

// TestSymlinkSwappedDuringAnOperation swaps a directory and a symbolic link, as
// fast as it can, below volumes that are created and deleted. Nothing outside,
// and no other volume, may change.
func TestSymlinkSwappedDuringAnOperation(t *testing.T) {
	for name, race := range map[string]struct {
		swapped string // the directory that is swapped with a link
		inside  bool   // the link leads to another volume instead of out of the base
		path    func(n int) string
	}{
		"parent, out of the base":      {swapped: "team", path: func(n int) string { return fmt.Sprintf("team/vol-%d", n%8) }},
		"parent, to another volume":    {swapped: "team", inside: true, path: func(n int) string { return fmt.Sprintf("team/vol-%d", n%8) }},
		"leaf, out of the base":        {swapped: "vol", path: func(int) string { return "vol" }},
		"leaf, to another volume":      {swapped: "vol", inside: true, path: func(int) string { return "vol" }},
		"markers, out of the base":     {swapped: ".berth/volumes", path: func(n int) string { return fmt.Sprintf("vol-%d", n) }},
		"trash, out of the base":       {swapped: ".berth/trash", path: func(n int) string { return fmt.Sprintf("vol-%d", n) }},
		"Berth's own, out of the base": {swapped: ".berth", path: func(n int) string { return fmt.Sprintf("vol-%d", n) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(volumeAt("pvc-victim", "victim"))
			b.data("victim")
			canary := t.TempDir()
			for _, dir := range []string{"vol-0", "keep"} {
				must(t, os.Mkdir(canary+"/"+dir, 0o751))
				must(t, os.WriteFile(canary+"/"+dir+"/data", []byte("precious"), 0o640))
			}
			before, victimBefore := snapshot(t, canary), snapshot(t, b.path("victim"))

			if _, err := os.Lstat(b.path(race.swapped)); err != nil {
				must(t, os.Mkdir(b.path(race.swapped), 0o755))
			}
			target := canary
			if race.inside {
				target = b.path("victim")
			}
			link := b.path("link")
			must(t, os.Symlink(target, link))

			stop := make(chan struct{})
			var swapper sync.WaitGroup
			swapper.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						// Fails while the directory is in the trash, or gone.
						_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, b.path(race.swapped), unix.RENAME_EXCHANGE)
					}
				}
			})
			outcomes := map[bool]int{}
			for n := range raceTries {
				spec := volumeAt(fmt.Sprintf("pvc-%d", n), race.path(n))
				spec.Mode = 0o777
				spec.Adopt = true // or the leaf would never get as far as being deleted
				_, err := b.pool.Create(b.ctx, spec)
				outcomes[err == nil]++
				outcomes[b.delete(spec) == nil]++
				if n%50 == 0 {
					_ = b.pool.PurgeTrash(b.ctx)
				}
			}
			close(stop)
			swapper.Wait()
			if outcomes[false] == 0 {
				t.Errorf("all %d operations succeeded: the race was never run", outcomes[true])
			}
			t.Logf("%d operations succeeded, %d were refused", outcomes[true], outcomes[false])
			if diff := cmp.Diff(before, snapshot(t, canary)); diff != "" {
				t.Errorf("outside: %s", diff)
			}
			if diff := cmp.Diff(victimBefore, snapshot(t, b.path("victim"))); diff != "" {
				t.Errorf("the other volume: %s", diff)
			}
		})
	}
}

// TestSymlinkSwappedDuringAPurge has a tenant swap directories and links in a
// volume that is being purged.
func TestSymlinkSwappedDuringAPurge(t *testing.T) {
	b := newBench(t)
	canary := t.TempDir()
	must(t, os.Mkdir(canary+"/dir", 0o751))
	must(t, os.WriteFile(canary+"/dir/data", []byte("precious"), 0o640))
	before := snapshot(t, canary)
	const rounds, width = 40, 50 // 2,000 swaps at least
	for round := range rounds {
		spec := volumeAt(fmt.Sprintf("pvc-%d", round), "vol")
		b.create(spec)
		for i := range width {
			must(t, os.MkdirAll(b.path(fmt.Sprintf("vol/%d/dir", i)), 0o755))
			must(t, os.WriteFile(b.path(fmt.Sprintf("vol/%d/dir/data", i)), nil, 0o644))
			must(t, os.Symlink(canary, b.path(fmt.Sprintf("vol/link-%d", i))))
		}
		volume, err := unix.Open(b.path("vol"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, b.delete(spec))
		var tenant sync.WaitGroup
		stop := make(chan struct{})
		tenant.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					_ = unix.Renameat2(volume, fmt.Sprint(i%width), volume, fmt.Sprintf("link-%d", i%width), unix.RENAME_EXCHANGE)
				}
			}
		})
		must(t, b.pool.PurgeTrash(b.ctx))
		close(stop)
		tenant.Wait()
		must(t, unix.Close(volume))
	}
	b.wantAdmin("trash")
	if diff := cmp.Diff(before, snapshot(t, canary)); diff != "" {
		t.Errorf("outside: %s", diff)
	}
}

// TestBaseSwappedForASymlink: the base is looked at anew by every operation.
func TestBaseSwappedForASymlink(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	canary := t.TempDir()
	must(t, os.Rename(b.base, b.base+"-real"))
	must(t, os.Symlink(canary, b.base))
	_, err := b.pool.Create(b.ctx, volumeAt("pvc-2", "two"))
	wantError(t, "Create", err, unix.ENOTDIR)
	wantError(t, "Delete", b.delete(specFor("vol")), unix.ENOTDIR)
	if got := names(t, canary); got != nil {
		t.Errorf("where the link leads: %v", got)
	}
	must(t, os.Remove(b.base))
	must(t, os.Rename(b.base+"-real", b.base))
	must(t, b.delete(specFor("vol")))
}

// snapshot describes everything in dir and dir itself.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, p := range append(tree(t, dir), ".") {
		info, err := os.Lstat(dir + "/" + p)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		got[p] = fmt.Sprintf("%v %d:%d inode %d", info.Mode(), st.Uid, st.Gid, st.Ino)
	}
	return got
}
