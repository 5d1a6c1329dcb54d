package directory_test

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
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
				for range 3 { // or its path stays taken
					err := b.delete(spec)
					outcomes[err == nil]++
					if err == nil {
						break
					}
				}
				if !isLink(link) && !isLink(b.path(race.swapped)) {
					// It was swapped in at the very moment of a rename, and is
					// in the trash now. Make another.
					_ = os.RemoveAll(link)
					_ = os.Symlink(target, link)
				}
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

// TestSymlinkSwappedBetweenAnyTwoCalls is the same with the swap just before
// the nth call of an operation, for every n; out of the base for
// good, or to another volume and back before the next call.
func TestSymlinkSwappedBetweenAnyTwoCalls(t *testing.T) {
	spec := specFor("team/app/vol")
	archived := spec
	archived.OnDelete = directory.OnDeleteArchive
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
	create := func(b *bench, p *directory.Pool) error { _, err := p.Create(b.ctx, spec); return err }
	for name, op := range map[string]struct {
		prepare directory.Spec
		target  string // the directory it moves to
		run     func(b *bench, p *directory.Pool) error
	}{
		"create":  {volumeAt("pvc-0", "team/app/other"), "", create},
		"repeat":  {spec, "", create},
		"delete":  {spec, ".berth/trash", func(b *bench, p *directory.Pool) error { return p.Delete(b.ctx, "pvc-1", expect) }},
		"archive": {archived, ".berth/archive", func(b *bench, p *directory.Pool) error { return p.Delete(b.ctx, "pvc-1", expect) }},
		"discard": {spec, "", func(b *bench, p *directory.Pool) error { return p.Discard(b.ctx, "pvc-1") }},
	} {
		for _, swapped := range []string{"team", "team/app", "team/app/vol", ".berth", ".berth/volumes", ".berth/trash", ".berth/archive"} {
			if unused := op.target != swapped; unused && (swapped == ".berth/trash" || swapped == ".berth/archive") {
				continue
			}
			for _, inside := range []bool{false, true} {
				back := inside
				t.Run(fmt.Sprintf("%s, %s, inside=%t, back=%t", name, swapped, inside, back), func(t *testing.T) {
					t.Parallel()
					for nth := 1; nth <= enoughCalls; nth++ {
						if !swapAt(t, op.prepare, op.run, swapped, nth, inside, back) {
							return
						}
					}
					t.Error("the operation never ends")
				})
			}
		}
	}
}

// swapAt runs one operation with a swap before its nth call, and reports
// whether there was one.
func swapAt(t *testing.T, prepare directory.Spec, run func(*bench, *directory.Pool) error, swapped string, nth int, inside, back bool) (hit bool) {
	t.Helper()
	b := newFastBench(t)
	b.create(volumeAt("pvc-victim", "victim"))
	for _, dir := range []string{"vol", "app", "app/vol", "volumes", "trash", "archive"} {
		must(t, os.Mkdir(b.path("victim/"+dir), 0o751))
	}
	b.create(prepare)
	must(t, b.pool.Close())
	canary := t.TempDir()
	for _, dir := range []string{"vol", "app", "app/vol", "volumes", "trash", "archive"} {
		must(t, os.Mkdir(canary+"/"+dir, 0o751))
	}
	target := canary
	if inside {
		target = b.path("victim")
	}
	link := b.path("link")
	must(t, os.Symlink(target, link))
	before := [2]map[string]string{snapshot(t, canary), snapshot(t, b.path("victim"))}

	calls := 0
	faults := &faultFS{Filesystem: local(t, b.base)}
	faults.before = func(string, string) error {
		calls++
		if calls == nth || (back && calls == nth+1) {
			// Fails where the operation has just moved or removed it.
			_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, b.path(swapped), unix.RENAME_EXCHANGE)
		}
		return nil
	}
	faults.serialise()
	pool := poolOn(t, faults, func(*directory.Options) {})
	err := run(b, pool)
	must(t, pool.Close())
	after := [2]map[string]string{snapshot(t, canary), snapshot(t, b.path("victim"))}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("swapped before call %d, the operation (%v) changed what the link leads to: %s", nth, err, diff)
	}
	return calls >= nth
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

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSymlink
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
