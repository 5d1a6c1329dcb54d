package directory_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/test/lib/oddfs"
)

// fileErrnos are what filesystems answer for one file that they can't read.
var fileErrnos = []syscall.Errno{
	syscall.EIO, syscall.EBADMSG, syscall.EUCLEAN, syscall.ESTALE, syscall.EACCES, syscall.EPERM,
	syscall.ENODATA, syscall.EREMOTEIO, syscall.ENXIO, syscall.EOVERFLOW, syscall.EFBIG, syscall.EILSEQ,
}

// unreadable makes the marker of volume unreadable.
func unreadable(volume string, err error) func(string) error {
	return func(name string) error {
		if name == volume+".json" {
			return err
		}
		return nil
	}
}

// listed returns the volumes that are listed, and what is told at the end.
func listed(pool *directory.Pool, ctx context.Context) (volumes []string, told error) {
	for record, err := range pool.Volumes(ctx) {
		if err != nil {
			told = errors.Join(told, err)
			continue
		}
		volumes = append(volumes, record.Volume)
	}
	return volumes, told
}

// withThree is a base with the volumes pvc-1, pvc-2 and pvc-3, and a pool on it
// that sees them through a filesystem which the test can change.
func withThree(t *testing.T) (*bench, *oddfs.FS) {
	t.Helper()
	b := newBench(t)
	for _, n := range []string{"1", "2", "3"} {
		b.create(volumeAt("pvc-"+n, "team-"+n+"/vol"))
		b.data("team-" + n + "/vol")
	}
	must(t, b.pool.Close())
	filesystem := &oddfs.FS{Filesystem: local(t, b.base)}
	b.pool = poolOn(t, filesystem, func(*directory.Options) {})
	return b, filesystem
}

func TestMarkerThatCannotBeReadIsOneDamagedMarker(t *testing.T) {
	for _, errno := range fileErrnos {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, running=%t", errno, running), func(t *testing.T) {
				b, filesystem := withThree(t)
				if running {
					must(t, b.pool.Open(b.ctx))
				}
				filesystem.ReadFile = unreadable("pvc-2", errno)

				volumes, told := listed(b.pool, b.ctx)
				if diff := cmp.Diff([]string{"pvc-1", "pvc-3"}, volumes); diff != "" {
					t.Errorf("listed: %s", diff)
				}
				wantError(t, "Volumes", told, directory.ErrDamagedMarker)
				wantError(t, "Volumes", told, errno)
				stats, err := b.pool.Stats(b.ctx)
				must(t, err)
				if stats.Damaged != 1 || stats.Volumes != 3 {
					t.Errorf("%d markers damaged of %d", stats.Damaged, stats.Volumes)
				}

				b.create(volumeAt("pvc-4", "new"))
				b.create(volumeAt("pvc-1", "team-1/vol"))
				must(t, b.delete(volumeAt("pvc-3", "team-3/vol")))
				damaged := volumeAt("pvc-2", "team-2/vol")
				_, err = b.pool.Create(b.ctx, damaged)
				wantError(t, "Create again", err, directory.ErrDamagedMarker)
				wantError(t, "Delete", b.delete(damaged), directory.ErrDamagedMarker)
				wantError(t, "Discard", b.pool.Discard(b.ctx, "pvc-2"), directory.ErrDamagedMarker)
				wantProtected(t, b, "team-2/vol")
				b.wantData("team-2/vol")

				filesystem.ReadFile = nil // the disk was replaced by a copy of it
				b.create(volumeAt("pvc-5", "newer"))
				if stats, err := b.pool.Stats(b.ctx); err != nil || stats.Damaged != 0 {
					t.Errorf("%d markers damaged, %v", stats.Damaged, err)
				}
				must(t, b.delete(damaged))
			})
		}
	}
}

// wantProtected checks that the directory of a volume whose marker can't be read is
// given to nobody.
func wantProtected(t *testing.T, b *bench, path string) {
	t.Helper()
	adopt := volumeAt("pvc-x", path)
	adopt.Adopt = true
	if _, err := b.pool.Create(b.ctx, adopt); !errors.Is(err, directory.ErrDamagedMarker) && !errors.Is(err, directory.ErrConflict) {
		t.Errorf("adopt %s: %v", path, err)
	}
	must(t, os.MkdirAll(b.path(path+"/inside"), 0o755))
	if _, err := b.pool.Create(b.ctx, volumeAt("pvc-x", path+"/inside/vol")); !errors.Is(err, directory.ErrDamagedMarker) && !errors.Is(err, directory.ErrConflict) {
		t.Errorf("Create inside of %s: %v", path, err)
	}
	must(t, os.Remove(b.path(path+"/inside")))
}

func TestMarkersThatAllCannotBeReadFailThePool(t *testing.T) {
	for _, errno := range fileErrnos {
		b, filesystem := withThree(t)
		filesystem.ReadFile = func(name string) error {
			if strings.HasPrefix(name, "pvc-") {
				return errno
			}
			return nil
		}
		_, err := b.pool.Create(b.ctx, volumeAt("pvc-4", "new"))
		wantError(t, "Create", err, errno)
		if err != nil && !strings.Contains(err.Error(), "none of the 3 markers") {
			t.Errorf("%v does not say that it is all of them", err)
		}
		if volumes, told := listed(b.pool, b.ctx); len(volumes) != 0 || told == nil {
			t.Errorf("listed %v, %v", volumes, told)
		}
		filesystem.ReadFile = nil
		b.create(volumeAt("pvc-4", "new"))
	}
}

// A server or a disk that does not answer says nothing about markers, whatever
// number comes with it.
func TestSilenceIsNoDamage(t *testing.T) {
	for name, silence := range map[string]error{
		"unknown outcome": errors.Join(directory.ErrOutcomeUnknown, syscall.EIO),
		"no answer":       errors.Join(directory.ErrNoAnswer, syscall.EACCES),
		"too late":        errors.Join(context.DeadlineExceeded, syscall.EIO),
		"timed out":       syscall.ETIMEDOUT,
		"no memory":       syscall.ENOMEM,
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, running=%t", name, running), func(t *testing.T) {
				b, filesystem := withThree(t)
				if running {
					must(t, b.pool.Open(b.ctx))
				}
				filesystem.ReadFile = unreadable("pvc-2", silence)
				_, told := listed(b.pool, b.ctx)
				if told == nil || errors.Is(told, directory.ErrDamagedMarker) {
					t.Errorf("Volumes: %v", told)
				}
				if !running {
					_, err := b.pool.Create(b.ctx, volumeAt("pvc-4", "new"))
					if err == nil || errors.Is(err, directory.ErrDamagedMarker) {
						t.Errorf("Create: %v", err)
					}
				}
				filesystem.ReadFile = nil
				volumes, told := listed(b.pool, b.ctx)
				if len(volumes) != 3 || told != nil {
					t.Errorf("listed %v, %v", volumes, told)
				}
			})
		}
	}
}

// What keeps a file beside the markers from being read is not of a marker.
func TestDirectoryThatCannotBeReadIsNoDamagedMarker(t *testing.T) {
	for _, running := range []bool{false, true} {
		b, filesystem := withThree(t)
		if running {
			must(t, b.pool.Open(b.ctx))
		}
		gone := atomic.Bool{}
		filesystem.ReadFile = func(name string) error {
			if name == "pvc-2.json" {
				gone.Store(true)
			}
			if gone.Load() {
				return syscall.ESTALE
			}
			return nil
		}
		_, told := listed(b.pool, b.ctx)
		wantError(t, "Volumes", told, syscall.ESTALE)
		if errors.Is(told, directory.ErrDamagedMarker) {
			t.Errorf("running=%t: %v", running, told)
		}
	}
}

// Each page of a list tells of what is damaged, also before the page.
func TestListThatGoesOnTellsOfDamageBefore(t *testing.T) {
	b, filesystem := withThree(t)
	filesystem.ReadFile = unreadable("pvc-1", syscall.EIO)
	for m, err := range b.pool.Markers(b.ctx, "") {
		must(t, err)
		if m.Volume == "pvc-2" {
			break
		}
	}
	var told error
	for _, err := range b.pool.Markers(b.ctx, "pvc-2") {
		told = errors.Join(told, err)
	}
	wantError(t, "Markers", told, directory.ErrDamagedMarker)
}

// The table by which a directory finds its files is damaged: they are listed, and not
// there. Their volumes are not gone.
func TestMarkerThatIsListedAndNotFoundIsDamaged(t *testing.T) {
	b, filesystem := withThree(t)
	filesystem.ReadFile = unreadable("pvc-2", syscall.ENOENT)
	for range 2 {
		b.create(volumeAt("pvc-4", "new"))
		wantProtected(t, b, "team-2/vol")
	}
	if stats, err := b.pool.Stats(b.ctx); err != nil || stats.Damaged != 1 {
		t.Errorf("%d markers damaged, %v", stats.Damaged, err)
	}
	must(t, os.Remove(b.path(".berth/volumes/pvc-2.json")))
	b.create(volumeAt("pvc-5", "team-2/vol/inside/vol"))
}

// Looking at a volume whose marker can be read again tells where it is, but not those
// who make others.
func TestVolumeThatWasOnlyLookedAtIsStillProtected(t *testing.T) {
	b, filesystem := withThree(t)
	filesystem.ReadFile = unreadable("pvc-2", syscall.EIO)
	must(t, b.pool.Open(b.ctx))
	filesystem.ReadFile = nil
	_, err := b.pool.Lookup(b.ctx, "pvc-2")
	must(t, err)
	must(t, b.pool.Inspect(b.ctx, "pvc-2"))
	wantProtected(t, b, "team-2/vol")
}

// A disk takes half a minute to say that it can't read a sector.
func TestMarkerThatIsSlowToFailHoldsUpNobodyTwice(t *testing.T) {
	b, filesystem := withThree(t)
	reads := atomic.Int32{}
	filesystem.ReadFile = func(name string) error {
		if name != "pvc-2.json" {
			return nil
		}
		reads.Add(1)
		time.Sleep(1100 * time.Millisecond) // the disk
		return syscall.EIO
	}
	for i := range 10 {
		b.create(volumeAt(fmt.Sprintf("pvc-new-%d", i), fmt.Sprintf("new-%d", i)))
	}
	_, told := listed(b.pool, b.ctx)
	wantError(t, "Volumes", told, directory.ErrDamagedMarker)
	if n := reads.Load(); n > 2 {
		t.Errorf("the disk was made to try %d times", n)
	}
}

// A marker that can be read again keeps its project id from other volumes.
func TestRepairedMarkerKeepsItsProject(t *testing.T) {
	b, filesystem := withThree(t)
	b.editMarker("pvc-2", func(m map[string]any) { m["quota"], m["project"] = "auto", 1 })
	quota := newFakeQuota(t)
	b.pool = poolOn(t, filesystem, func(o *directory.Options) { o.Quota = quota })
	filesystem.ReadFile = unreadable("pvc-2", syscall.EIO)
	must(t, b.pool.Open(b.ctx))
	filesystem.ReadFile = nil
	b.create(volumeAt("pvc-4", "new"))
	if owner := quota.held[1]; owner.Volume != "pvc-2" {
		t.Errorf("the project id is held for %q", owner.Volume)
	}
}
