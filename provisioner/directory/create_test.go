package directory_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

func TestCreateMakesDirectoryAndMarker(t *testing.T) {
	b := newBench(t)
	spec := specFor("team/app/vol")
	spec.Mode = 0o2775
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = new(uint32(1234)), new(uint32(4321))
	}
	m := b.create(spec)
	b.wantTree("team", "team/app", "team/app/vol")
	b.wantAdmin("volumes", "pvc-1.json")
	want := directory.Marker{
		Version: 1, Volume: "pvc-1", ClaimNamespace: "ns", Claim: "claim", ClaimUID: spec.ClaimUID, Class: "class",
		SizeBytes: 1 << 30, Pool: "default", Path: "team/app/vol", OnDelete: directory.OnDeleteDelete,
		Mode: 0o2775, UID: spec.UID, GID: spec.GID, ParentsMade: 2, Created: m.Created,
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	stored, err := b.pool.Lookup(b.ctx, "pvc-1")
	must(t, err)
	if diff := cmp.Diff(want, stored); diff != "" {
		t.Errorf("stored marker: %s", diff)
	}
	wantAttr(t, b.path("team/app/vol"), 0o2775, *spec.UID, *spec.GID)
	wantAttr(t, b.path("team"), 0o755, uint32(os.Geteuid()), uint32(os.Getegid()))
}

func TestUmaskDoesNotMatter(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	b := newBench(t)
	b.create(specFor("team/vol"))
	wantAttr(t, b.path("team"), 0o755, uint32(os.Geteuid()), uint32(os.Getegid()))
	wantAttr(t, b.path("team/vol"), 0o770, uint32(os.Geteuid()), uint32(os.Getegid()))
}

func TestOwnerCanBeLeftToTheFilesystem(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path(".berth"), 0o700))
	gid := uint32(os.Getegid())
	if os.Geteuid() == 0 {
		gid = 4321 // a base whose setgid bit decides the group
		must(t, os.Chown(b.base, -1, int(gid)))
		must(t, os.Chmod(b.base, 0o755|os.ModeSetgid))
	}
	spec := specFor("team/vol")
	spec.UID, spec.GID = nil, nil
	b.create(spec)
	b.create(spec)
	wantAttr(t, b.path("team/vol"), 0o770, uint32(os.Geteuid()), gid)
}

func TestCreateIsIdempotentAndKeepsItsPath(t *testing.T) {
	b := newBench(t)
	first := b.create(specFor("one"))
	b.data("one")
	for _, restart := range []bool{false, true} {
		if restart {
			b.restart()
		}
		again := b.create(specFor("the-labels-changed"))
		if diff := cmp.Diff(first, again); diff != "" {
			t.Error(diff)
		}
	}
	b.wantTree("one", "one/data")
}

func TestCreateLeavesAVolumeInUseAlone(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.Chmod(b.path("vol"), 0o777)) // as kubelet may, for a fsGroup
	b.create(specFor("vol"))
	wantAttr(t, b.path("vol"), 0o777, uint32(os.Geteuid()), uint32(os.Getegid()))
}

func TestCreateForAnotherClaimIsRefused(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	other := specFor("vol")
	other.ClaimUID = "another"
	_, err := b.pool.Create(b.ctx, other)
	wantError(t, "Create", err, directory.ErrNotOwned)
}

func TestExistingDirectoryIsRefused(t *testing.T) {
	b := newBench(t)
	b.create(specFor("first"))
	must(t, os.MkdirAll(b.path("team/theirs"), 0o755))
	b.data("team/theirs")
	_, err := b.pool.Create(b.ctx, volumeAt("pvc-2", "team/theirs"))
	wantInfeasible(t, "Create", "team/theirs", err, "existing", "adopt")
	wantError(t, "Create", err, directory.ErrExists)
	b.wantData("team/theirs")
	b.wantAdmin("volumes", "pvc-1.json")
}

func TestAdoptionLeavesTheDirectoryAsItIs(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path(".berth"), 0o700))
	must(t, os.Mkdir(b.path("theirs"), 0o751))
	b.data("theirs")
	spec := specFor("theirs")
	spec.Adopt = true
	if m := b.create(spec); !m.Adopted {
		t.Error("not marked as adopted")
	}
	b.create(spec)
	wantAttr(t, b.path("theirs"), 0o751, uint32(os.Geteuid()), uint32(os.Getegid()))

	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantData("theirs")
	b.wantAdmin("volumes")
	b.create(spec)
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantData("theirs")
	b.create(spec)
	must(t, b.delete(spec)) // bound and deleted: the class's onDelete counts
	b.wantTree()
}

func TestAdoptedDirectoryThatIsGoneIsNotMadeAnew(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path(".berth"), 0o700))
	must(t, os.Mkdir(b.path("theirs"), 0o755))
	spec := specFor("theirs")
	spec.Adopt = true
	b.create(spec)
	must(t, os.Remove(b.path("theirs")))
	_, err := b.pool.Create(b.ctx, spec)
	wantError(t, "Create", err, os.ErrNotExist)
	b.wantTree()
}

func TestWhatIsNoDirectoryIsRefusedAtEveryLevel(t *testing.T) {
	plant := map[string]func(t *testing.T, at, elsewhere string){
		"symlink out of the base":     func(t *testing.T, at, elsewhere string) { must(t, os.Symlink(elsewhere, at)) },
		"symlink to another volume":   func(t *testing.T, at, _ string) { must(t, os.Symlink("victim", at)) },
		"symlink to the base":         func(t *testing.T, at, _ string) { must(t, os.Symlink(".", at)) },
		"dangling symlink":            func(t *testing.T, at, _ string) { must(t, os.Symlink("nowhere", at)) },
		"file":                        func(t *testing.T, at, _ string) { must(t, os.WriteFile(at, nil, 0o644)) },
		"fifo":                        func(t *testing.T, at, _ string) { must(t, syscall.Mkfifo(at, 0o644)) },
		"bind mount":                  func(t *testing.T, at, elsewhere string) { bindMount(t, elsewhere, at) },
		"bind mount of a volume":      func(t *testing.T, at, _ string) { bindMount(t, at+"/../victim", at) },
		"symlink to Berth's own data": func(t *testing.T, at, _ string) { must(t, os.Symlink(".berth/volumes", at)) },
	}
	for name, put := range plant {
		for _, adopt := range []bool{false, true} {
			for _, path := range []string{"x", "x/vol", "x/y/vol"} {
				t.Run(fmt.Sprintf("%s at x of %s adopt=%t", name, path, adopt), func(t *testing.T) {
					b := newBench(t)
					b.create(volumeAt("pvc-victim", "victim"))
					b.data("victim")
					elsewhere := t.TempDir()
					put(t, b.path("x"), elsewhere)
					spec := specFor(path)
					spec.Adopt = adopt
					_, err := b.pool.Create(b.ctx, spec)
					wantInfeasible(t, "Create", path, err, `"x"`)
					wantError(t, "Create", err, directory.ErrNotADirectory)
					b.wantAdmin("volumes", "pvc-victim.json")
					b.wantData("victim")
					if left := append(names(t, elsewhere), names(t, b.path("victim"))...); len(left) != 1 {
						t.Errorf("something was made where the link leads: %v", left)
					}
				})
			}
		}
	}
}

func TestVolumesDoNotOverlap(t *testing.T) {
	for name, test := range map[string]struct{ first, second, names string }{
		"the same path":         {"secret-tenant", "secret-tenant", "secret-tenant"},
		"inside another volume": {"a/b", "a/b/c/d", "a/b"},
		"above another volume":  {"a/b/secret-tenant", "a", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(volumeAt("pvc-1", test.first))
			for range 2 {
				for _, adopt := range []bool{false, true} {
					spec := volumeAt("pvc-2", test.second)
					spec.Adopt = adopt
					_, err := b.pool.Create(b.ctx, spec)
					wantInfeasible(t, "Create", test.second, err, test.names)
					wantError(t, "Create", err, directory.ErrConflict)
					if test.second != test.first && strings.Contains(err.Error(), "secret-tenant") {
						t.Errorf("%v names the other volume's directory", err)
					}
				}
				b.restart()
			}
			b.wantAdmin("volumes", "pvc-1.json")
			must(t, b.delete(volumeAt("pvc-1", test.first)))
			b.create(volumeAt("pvc-2", test.second))
		})
	}
}

func TestNamesThatBeginAlikeDoNotOverlap(t *testing.T) {
	b := newBench(t)
	for i, path := range []string{"a", "ab", "a-b", "b/c", "b/cd", "b/c-d/e"} {
		b.create(volumeAt(fmt.Sprintf("pvc-%d", i), path))
	}
}

func TestInvalidSpecsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*directory.Spec){
		"path above":       func(s *directory.Spec) { s.Path = "../x" },
		"no path":          func(s *directory.Spec) { s.Path = "" },
		"absolute":         func(s *directory.Spec) { s.Path = "/etc" },
		"Berth's own":      func(s *directory.Spec) { s.Path = ".berth/volumes" },
		"volume is a path": func(s *directory.Spec) { s.Volume = "../pvc" },
		"volume is empty":  func(s *directory.Spec) { s.Volume = "" },
		"volume is long":   func(s *directory.Spec) { s.Volume = strings.Repeat("x", 241) },
		"volume in caps":   func(s *directory.Spec) { s.Volume = "PVC" },
		"no claim":         func(s *directory.Spec) { s.ClaimUID = "" },
		"no onDelete":      func(s *directory.Spec) { s.OnDelete = "" },
		"mode":             func(s *directory.Spec) { s.Mode = 0o10000 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			spec := specFor("vol")
			change(&spec)
			if _, err := b.pool.Create(b.ctx, spec); err == nil {
				t.Error("no error")
			}
			if left := names(t, b.base); left != nil {
				t.Errorf("the base holds %v", left)
			}
		})
	}
}

func TestLongestNamesFit(t *testing.T) {
	b := newBench(t)
	deep := strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 255)+"/", 11), "/")
	spec := volumeAt(strings.Repeat("v", 240), deep)
	spec.OnDelete = directory.OnDeleteArchive
	b.create(spec)
	must(t, b.delete(spec))
	b.wantTree()
	spec.OnDelete = directory.OnDeleteDelete
	b.create(spec)
	must(t, b.delete(spec))
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantAdmin("trash")
}

func TestOneOfManyCreatesForOnePathWins(t *testing.T) {
	b := newBench(t)
	for round := range 20 {
		path := fmt.Sprintf("team-%d/vol", round)
		var won atomic.Int32
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				_, err := b.pool.Create(b.ctx, volumeAt(fmt.Sprintf("pvc-%d-%d", round, i), path))
				if err == nil {
					won.Add(1)
				} else if !provisioner.IsInfeasible(err) {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Errorf("%d creates of one path succeeded", won.Load())
		}
	}
	if got := len(names(t, b.path(".berth/volumes"))); got != 20 {
		t.Errorf("%d markers are left, want 20", got)
	}
}

func TestOneVolumeCreatedManyTimesAtOnceIsOne(t *testing.T) {
	b := newBench(t)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := b.pool.Create(b.ctx, specFor("team/vol")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	b.wantTree("team", "team/vol")
}

func TestParentsSurviveDeletionsNextToThem(t *testing.T) {
	b := newBench(t)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for n := range 40 {
				spec := volumeAt(fmt.Sprintf("pvc-%d-%d", i, n), fmt.Sprintf("team/app/vol-%d", i))
				if _, err := b.pool.Create(b.ctx, spec); err != nil {
					t.Error(err)
				} else if _, err := os.Stat(b.path(spec.Path)); err != nil {
					t.Error(err)
				}
				if err := b.delete(spec); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	b.wantTree()
	b.wantAdmin("volumes")
}

func TestDirectoryMadeBehindTheBackIsNotTaken(t *testing.T) {
	b := newBench(t)
	b.create(volumeAt("pvc-0", "first"))
	must(t, b.pool.Close())
	// Between the look at the path and the mkdir, somebody makes the directory.
	faults := &faultFS{Filesystem: local(t, b.base)}
	faults.before = func(op, name string) error {
		if op == "Mkdir" && name == "vol" {
			if err := os.Mkdir(b.path("vol"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				t.Error(err)
			}
		}
		return nil
	}
	pool := poolOn(t, faults, func(*directory.Options) {})
	_, err := pool.Create(b.ctx, specFor("vol"))
	wantError(t, "Create", err, directory.ErrExists)
	b.wantTree("first", "vol")
	b.wantAdmin("volumes", "pvc-0.json")
}

func wantAttr(t *testing.T, path string, mode, uid, gid uint32) {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	if st.Mode&0o7777 != mode || st.Uid != uid || st.Gid != gid {
		t.Errorf("%s: mode %#o, owner %d:%d, want %#o, %d:%d", path, st.Mode&0o7777, st.Uid, st.Gid, mode, uid, gid)
	}
}

func bindMount(t *testing.T, from, to string) {
	t.Helper()
	needRoot(t)
	must(t, os.Mkdir(to, 0o755))
	must(t, syscall.Mount(from, to, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { _ = syscall.Unmount(to, 2 /* MNT_DETACH */) })
}
