package directory_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

func TestPurgeRemovesEverythingATenantCanMake(t *testing.T) {
	b := newBench(t)
	canary := t.TempDir()
	must(t, os.WriteFile(canary+"/data", nil, 0o644))
	spec := specFor("vol")
	b.create(spec)
	vol := b.path("vol")
	must(t, os.MkdirAll(vol+"/a/b/c", 0o755))
	must(t, os.Mkdir(vol+"/empty", 0o000))
	must(t, os.Mkdir(vol+"/closed", 0o755))
	must(t, os.WriteFile(vol+"/closed/file", nil, 0o000))
	if os.Geteuid() == 0 {
		must(t, os.Chmod(vol+"/closed", 0o000))
		must(t, syscall.Mknod(vol+"/device", syscall.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, syscall.Mknod(vol+"/a/disk", syscall.S_IFBLK|0o666, int(unix.Mkdev(7, 0))))
	}
	must(t, syscall.Mkfifo(vol+"/fifo", 0o644))
	must(t, syscall.Mkfifo(vol+"/a/b/fifo", 0o644))
	socket, err := net.Listen("unix", vol+"/s")
	must(t, err)
	defer socket.Close()
	must(t, os.Symlink(canary, vol+"/out"))
	must(t, os.Symlink(canary, vol+"/a/out"))
	must(t, os.Symlink("..", vol+"/a/b/up"))
	must(t, os.Symlink("self", vol+"/self"))
	must(t, os.Link(canary+"/data", vol+"/a/hardlink"))
	for _, name := range []string{strings.Repeat("n", 255), "new\nline", "\xff\xfe", " ", "-rf", "*", ".berth", "..."} {
		must(t, os.Mkdir(vol+"/"+name, 0o755))
		must(t, os.WriteFile(vol+"/"+name+"/"+name, nil, 0o644))
	}
	must(t, b.delete(spec))
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantAdmin("trash")
	if got := names(t, canary); len(got) != 1 {
		t.Errorf("outside: %v", got)
	}
}

func TestPurgeOfADeepTreeIsBounded(t *testing.T) {
	const depth = 10_000
	b := newBench(t)
	spec := specFor("vol")
	b.create(spec)
	dir, err := unix.Open(b.path("vol"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(dir, "directory", 0o755))
		child, err := unix.Openat(dir, "directory", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(dir))
		dir = child
	}
	must(t, unix.Close(dir))
	must(t, b.delete(spec))
	must(t, b.pool.Close())
	faults := &faultFS{Filesystem: local(t, b.base)}
	must(t, poolOn(t, faults, func(o *directory.Options) { o.PurgeRate = 1e9 }).PurgeTrash(b.ctx))
	b.wantAdmin("trash")
	if faults.most > 8 {
		t.Errorf("%d directories were open at once", faults.most)
	}
}

func TestPurgeOfAWideTree(t *testing.T) {
	b := newBench(t)
	spec := specFor("vol")
	b.create(spec)
	for i := range 3000 {
		must(t, os.MkdirAll(b.path(fmt.Sprintf("vol/%d/x", i)), 0o755))
		must(t, os.WriteFile(b.path(fmt.Sprintf("vol/%d/file", i)), nil, 0o644))
	}
	must(t, b.delete(spec))
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantAdmin("trash")
}

func TestPurgeStopsAtMountPoints(t *testing.T) {
	for _, at := range []string{"mnt", "a/mnt", "a/b/c/mnt"} {
		t.Run(at, func(t *testing.T) {
			needRoot(t)
			b := newBench(t)
			canary := t.TempDir()
			must(t, os.Mkdir(canary+"/dir", 0o755))
			must(t, os.WriteFile(canary+"/dir/data", nil, 0o644))
			for _, name := range []string{"stuck", "other"} {
				spec := volumeAt("pvc-"+name, name)
				b.create(spec)
				must(t, os.MkdirAll(b.path(name+"/a/b/c/d"), 0o755))
			}
			bindMount(t, canary, b.path("stuck/"+at))
			must(t, b.delete(volumeAt("pvc-stuck", "stuck")))
			must(t, b.delete(volumeAt("pvc-other", "other")))

			err := b.pool.PurgeTrash(b.ctx)
			wantError(t, "PurgeTrash", err, directory.ErrCrossesMount)
			if !strings.Contains(err.Error(), "pvc-stuck") || !strings.Contains(err.Error(), "mnt") {
				t.Errorf("%v does not name the mount", err)
			}
			for _, name := range names(t, b.path(".berth/trash")) {
				if strings.Contains(name, "pvc-other") {
					t.Errorf("%s was left", name)
				}
			}
			if _, err := os.Stat(canary + "/dir/data"); err != nil {
				t.Error(err)
			}
			for _, mount := range mountsBelow(t, b.base) {
				must(t, unix.Unmount(mount, unix.MNT_DETACH))
			}
			must(t, b.pool.PurgeTrash(b.ctx))
			b.wantAdmin("trash")
			if _, err := os.Stat(canary + "/dir/data"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPurgeEndsWithItsContext(t *testing.T) {
	b := newBench(t)
	spec := specFor("vol")
	b.create(spec)
	b.data("vol")
	must(t, b.delete(spec))
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	wantError(t, "PurgeTrash", b.pool.PurgeTrash(ctx), context.Canceled)
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantAdmin("trash")
}

func TestRunEmptiesTheTrashNowAndAlways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		first := specFor("one")
		b.create(first)
		b.data("one")
		must(t, b.delete(first))
		b.restart() // what an earlier process left
		stop := b.run()
		synctest.Wait()
		time.Sleep(time.Millisecond) // the rate limit's, and not real
		synctest.Wait()
		b.wantAdmin("trash")

		second := volumeAt("pvc-2", "two")
		b.create(second)
		b.data("two")
		must(t, b.delete(second))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		b.wantAdmin("trash")
		stop()
	})
}

func TestRunTriesAgainWithGrowingPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		spec := specFor("vol")
		b.create(spec)
		b.data("vol")
		must(t, b.delete(spec))
		must(t, b.pool.Close())
		var mu sync.Mutex
		var tries []time.Duration
		start := time.Now()
		faults := &faultFS{Filesystem: local(t, b.base)}
		faults.before = func(op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			if op == "Remove" && name == "data" && len(tries) < 12 {
				tries = append(tries, time.Since(start).Truncate(time.Second))
				return errPower
			}
			return nil
		}
		b.pool = poolOn(t, faults, func(o *directory.Options) { o.PurgeRate = 1e9 })
		stop := b.run()
		time.Sleep(time.Hour) // of the test's own time
		synctest.Wait()
		b.wantAdmin("trash")
		stop()
		var gaps []time.Duration
		for i := 1; i < len(tries); i++ {
			if gap := tries[i] - tries[i-1]; gap > 0 {
				gaps = append(gaps, gap)
			}
		}
		if len(gaps) < 5 || gaps[0] > 2*time.Second || gaps[len(gaps)-1] > 5*time.Minute {
			t.Errorf("waited %v", gaps)
		}
		for i := 1; i < len(gaps); i++ {
			if gaps[i] < gaps[i-1] {
				t.Errorf("waited %v, not ever longer", gaps)
			}
		}
	})
}

func TestRunWaitsForThePoolToBeUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		stop := b.run()
		time.Sleep(time.Hour)
		if left := names(t, b.base); left != nil {
			t.Errorf("Run made %v", left)
		}
		spec := specFor("vol")
		b.create(spec)
		must(t, b.delete(spec))
		time.Sleep(time.Second)
		synctest.Wait()
		b.wantAdmin("trash")
		stop()
	})
}

func TestPurgeKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		spec := specFor("vol")
		b.create(spec)
		for i := range 1000 {
			must(t, os.WriteFile(b.path(fmt.Sprintf("vol/%d", i)), nil, 0o644))
		}
		must(t, b.delete(spec))
		must(t, b.pool.Close())
		pool := newPoolWith(t, b.base, func(o *directory.Options) { o.PurgeRate = 100 })
		start := time.Now()
		must(t, pool.PurgeTrash(b.ctx))
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("1,000 files at 100 a second took %v", took)
		}
	})
}

func TestPathOfAVolumeThatIsBeingDeletedIsFreeSoon(t *testing.T) {
	b := newBench(t)
	faults := &faultFS{Filesystem: local(t, b.base)}
	pool := poolOn(t, faults, func(*directory.Options) {})
	_, err := pool.Create(b.ctx, specFor("team/vol"))
	must(t, err)
	checked := false
	faults.before = func(op, name string) error {
		if op != "Remove" || name != "pvc-1.json" || checked {
			return nil
		}
		checked = true
		for _, path := range []string{"team/vol", "team", "team/vol/below"} {
			_, err := pool.Create(b.ctx, volumeAt("pvc-2", path))
			wantError(t, "Create at "+path, err, directory.ErrConflict)
			if provisioner.IsInfeasible(err) {
				t.Errorf("%v: that it passes is not said", err)
			}
		}
		return errors.New("and the deletion fails")
	}
	expect := directory.Expectation{ClaimUID: "uid-of-pvc-1", Path: "team/vol"}
	if err := pool.Delete(b.ctx, "pvc-1", expect); err == nil || !checked {
		t.Errorf("Delete = %v", err)
	}
	must(t, pool.Delete(b.ctx, "pvc-1", expect))
	_, err = pool.Create(b.ctx, volumeAt("pvc-2", "team/vol"))
	must(t, err)
}

// run runs the pool's background work until stop is called.
func (b *bench) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.pool.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run = %v", err)
		}
	}
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var below []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	return below
}

// BenchmarkPurge measures files removed per second, without a limit.
func BenchmarkPurge(b *testing.B) {
	base := b.TempDir()
	pool := newPoolWith(b, base, func(o *directory.Options) { o.PurgeRate = 1e9 })
	spec := specFor("vol")
	if _, err := pool.Create(context.Background(), spec); err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		dir := fmt.Sprintf("%s/vol/%d", base, i/1000)
		if i%1000 == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := pool.Delete(context.Background(), spec.Volume, directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := pool.PurgeTrash(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
