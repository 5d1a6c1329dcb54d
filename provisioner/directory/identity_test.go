package directory_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

func TestEmptyBaseIsInitialisedByTheFirstCreate(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path("lost+found"), 0o700))
	b.create(specFor("vol"))
	b.wantTree("lost+found", "vol")
	b.wantAdmin("", "archive", "lock", "pool.json", "trash", "volumes")
	for _, dir := range []string{".berth", ".berth/volumes", ".berth/trash", ".berth/archive"} {
		info, err := os.Lstat(b.path(dir))
		must(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("mode of %s = %v", dir, info.Mode())
		}
	}
}

func TestOnlyCreateInitialises(t *testing.T) {
	b := newBench(t)
	wantError(t, "Delete", b.delete(specFor("vol")), directory.ErrNotInitialised)
	wantError(t, "PurgeTrash", b.pool.PurgeTrash(b.ctx), directory.ErrNotInitialised)
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	for _, err := range b.pool.Volumes(b.ctx) {
		t.Errorf("Volumes yielded something: %v", err)
	}
	if _, err := b.pool.Stats(b.ctx); err != nil {
		t.Error(err)
	}
	if left := names(t, b.base); left != nil {
		t.Errorf("the base holds %v", left)
	}
}

func TestBaseWithContentIsRefusedUntilAnAdministratorAgrees(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path("somebodys"), 0o755))
	b.data("somebodys")
	_, err := b.pool.Create(b.ctx, specFor("vol"))
	wantError(t, "Create", err, directory.ErrNotInitialised)
	if !strings.Contains(err.Error(), "make an empty directory .berth") {
		t.Errorf("%v does not say how", err)
	}
	b.wantTree("somebodys", "somebodys/data")

	must(t, os.Mkdir(b.path(".berth"), 0o777))
	must(t, os.Chmod(b.path(".berth"), 0o777))
	b.create(specFor("vol"))
	b.wantTree("somebodys", "somebodys/data", "vol")
	info, err := os.Stat(b.path(".berth"))
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode of .berth = %v", info.Mode())
	}
}

func TestMissingBaseIsNotMade(t *testing.T) {
	pool := newPool(t, t.TempDir()+"/missing")
	_, err := pool.Create(t.Context(), specFor("vol"))
	wantError(t, "Create", err, os.ErrNotExist)
}

func TestInitialisingCanBeRefused(t *testing.T) {
	base := t.TempDir()
	refusal := errors.New("the pool has volumes")
	pool := newPoolWith(t, base, func(o *directory.Options) {
		o.RefuseInitialise = func(context.Context) error { return refusal }
	})
	_, err := pool.Create(t.Context(), specFor("vol"))
	wantError(t, "Create", err, refusal)
	wantError(t, "Create", err, directory.ErrNotInitialised)
	if left := names(t, base); left != nil {
		t.Errorf("the base holds %v", left)
	}
	must(t, os.Mkdir(base+"/.berth", 0o700))
	if _, err := pool.Create(t.Context(), specFor("vol")); err != nil {
		t.Errorf("an administrator made .berth, and still: %v", err)
	}
}

func TestDiskThatVanishesIsNoticed(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.Rename(b.base, b.base+"-disk"))
	_, err := b.pool.Create(b.ctx, volumeAt("pvc-2", "two"))
	wantError(t, "Create without a base", err, os.ErrNotExist)

	must(t, os.Mkdir(b.base, 0o755))
	_, err = b.pool.Create(b.ctx, volumeAt("pvc-2", "two"))
	wantError(t, "Create on what is below", err, directory.ErrWrongPool)
	wantError(t, "Delete on what is below", b.delete(specFor("vol")), directory.ErrWrongPool)
	wantError(t, "Discard on what is below", b.pool.Discard(b.ctx, "pvc-1"), directory.ErrWrongPool)
	if left := names(t, b.base); left != nil {
		t.Errorf("the directory below the disk holds %v", left)
	}

	must(t, os.Remove(b.base))
	must(t, os.Rename(b.base+"-disk", b.base))
	b.create(volumeAt("pvc-2", "two"))
	must(t, b.delete(specFor("vol")))
}

func TestAnotherDiskIsNoticed(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	other := newBench(t)
	other.create(specFor("vol"))
	must(t, other.pool.Close())
	must(t, os.Rename(b.base, b.base+"-disk"))
	must(t, os.Rename(other.base, b.base))
	wantError(t, "Delete", b.delete(specFor("vol")), directory.ErrWrongPool)
	must(t, os.Rename(b.base, other.base))
	must(t, os.Rename(b.base+"-disk", b.base))
}

func TestPoolOfAnotherNameOrDriverIsRefused(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, b.pool.Close())
	for _, change := range []func(*directory.Options){
		func(o *directory.Options) { o.Name = "ssd" },
		func(o *directory.Options) { o.Driver = "nfs" },
	} {
		_, err := newPoolWith(t, b.base, change).Create(b.ctx, volumeAt("pvc-2", "two"))
		wantError(t, "Create", err, directory.ErrWrongPool)
	}
}

func TestDamagedIdentityIsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "truncated": `{"version":1,`, "no id": `{"version":1,"pool":"default","driver":"test"}`,
		"later version": `{"version":2,"pool":"default","driver":"test","id":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(specFor("vol"))
			must(t, os.WriteFile(b.path(".berth/pool.json"), []byte(content), 0o600))
			wantError(t, "Delete", b.delete(specFor("vol")), directory.ErrWrongPool)
			b.restart()
			_, err := b.pool.Create(b.ctx, specFor("vol"))
			wantError(t, "Create", err, directory.ErrWrongPool)
			b.wantTree("vol")
		})
	}
}

func TestPoolWithoutItsIdentityIsNotInitialisedAgain(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.Remove(b.path(".berth/pool.json")))
	b.restart()
	_, err := b.pool.Create(b.ctx, volumeAt("pvc-2", "two"))
	wantError(t, "Create", err, directory.ErrWrongPool)
}

func TestOneProcessOwnsABase(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	second := newPool(t, b.base)
	_, err := second.Create(b.ctx, volumeAt("pvc-2", "two"))
	wantError(t, "Create by a second process", err, directory.ErrLocked)
	must(t, b.pool.Close())
	if _, err := second.Create(b.ctx, volumeAt("pvc-2", "two")); err != nil {
		t.Errorf("Create after the first has gone: %v", err)
	}
}

func TestSymlinksInPlaceOfBerthsOwnDirectoriesAreRefused(t *testing.T) {
	for _, name := range []string{".berth", ".berth/volumes", ".berth/trash", ".berth/archive", ".berth/pool.json", ".berth/lock"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			spec := specFor("vol")
			if name == ".berth/archive" {
				spec.OnDelete = directory.OnDeleteArchive
			}
			b.create(spec)
			b.data("vol")
			b.restart()
			elsewhere := t.TempDir() + "/elsewhere"
			must(t, os.Rename(b.path(name), elsewhere))
			must(t, os.Symlink(elsewhere, b.path(name)))
			before := tree(t, elsewhere)
			if err := b.delete(spec); err == nil {
				t.Error("Delete followed the link")
			}
			b.wantData("vol")
			if after := tree(t, elsewhere); len(after) != len(before) {
				t.Errorf("where the link leads: %v, was %v", after, before)
			}
		})
	}
}

func inCluster(id string) func(*directory.Options) {
	return func(o *directory.Options) {
		o.Cluster = func(context.Context) (string, error) { return id, nil }
	}
}

func TestPoolBelongsToTheClusterThatUsesIt(t *testing.T) {
	base := t.TempDir()
	first := newPoolWith(t, base, inCluster("blue"))
	_, err := first.Create(t.Context(), specFor("vol"))
	must(t, err)
	must(t, first.Close())

	other := newPoolWith(t, base, inCluster("green"))
	_, err = other.Create(t.Context(), volumeAt("pvc-2", "other"))
	wantError(t, "Create", err, directory.ErrWrongPool)
	for _, word := range []string{"blue", "green", "directory of its own", "cluster"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
	wantError(t, "Delete", other.Delete(t.Context(), "pvc-1", directory.Expectation{
		ClaimUID: "uid-of-pvc-1", Path: "vol", OnDelete: directory.OnDeleteDelete,
	}), directory.ErrWrongPool)
	for record, err := range other.Volumes(t.Context()) {
		if err == nil {
			t.Errorf("saw %s of another cluster", record.Volume)
		}
	}
}

func TestPoolOfNoClusterIsTakenIntoUse(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, b.pool.Close())
	pool := newPoolWith(t, b.base, inCluster("green"))
	_, err := pool.Create(b.ctx, volumeAt("pvc-2", "other"))
	must(t, err)
	must(t, pool.Close())
	_, err = newPoolWith(t, b.base, inCluster("blue")).Create(b.ctx, volumeAt("pvc-3", "third"))
	wantError(t, "Create", err, directory.ErrWrongPool)
}

func TestPoolThatIsTakenOverByAnotherClusterIsLeftAlone(t *testing.T) {
	base := t.TempDir()
	pool := newPoolWith(t, base, inCluster("blue"))
	_, err := pool.Create(t.Context(), specFor("vol"))
	must(t, err)
	file := filepath.Join(base, ".berth", "pool.json")
	data, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(data), "blue", "green")), 0o600))
	_, err = pool.Create(t.Context(), volumeAt("pvc-2", "other"))
	wantError(t, "Create", err, directory.ErrWrongPool)
}

// unlocked is a filesystem without locks, as NFS is to some.
type unlocked struct{ directory.Filesystem }

func (f unlocked) Root(ctx context.Context) (directory.Dir, error) {
	dir, err := f.Filesystem.Root(ctx)
	return unlockedDir{dir}, err
}

type unlockedDir struct{ directory.Dir }

func (d unlockedDir) Open(ctx context.Context, name string) (directory.Dir, error) {
	dir, err := d.Dir.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return unlockedDir{dir}, nil
}

func (d unlockedDir) Rename(ctx context.Context, name string, to directory.Dir, newName string) error {
	return d.Dir.Rename(ctx, name, to.(unlockedDir).Dir, newName)
}

func (d unlockedDir) Lock(context.Context, string) (io.Closer, error) { return io.NopCloser(nil), nil }

func TestPoolsWithTheSameBaseKnowOfEachOthersVolumes(t *testing.T) {
	base := t.TempDir()
	var siblings directory.Siblings
	open := func() *directory.Pool {
		local, err := directory.NewLocal(base, directory.LocalOptions{})
		must(t, err)
		return poolOn(t, unlocked{local}, func(o *directory.Options) { o.Siblings = &siblings })
	}
	one, two := open(), open()
	_, err := one.Create(t.Context(), volumeAt("pvc-1", "a/one"))
	must(t, err)
	_, err = two.Create(t.Context(), volumeAt("pvc-2", "a/two"))
	must(t, err)
	_, err = one.Create(t.Context(), volumeAt("pvc-3", "a/two/three"))
	wantError(t, "Create in a sibling's volume", err, directory.ErrConflict)
	_, err = one.Create(t.Context(), volumeAt("pvc-3", "b"))
	must(t, err)
	_, err = two.Create(t.Context(), volumeAt("pvc-4", "b/four"))
	wantError(t, "Create in a sibling's volume", err, directory.ErrConflict)
}

func TestAPoolIsNotAdoptedAsAVolume(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.MkdirAll(b.path("nested/.berth"), 0o700))
	spec := volumeAt("pvc-2", "nested")
	spec.Adopt = true
	_, err := b.pool.Create(b.ctx, spec)
	wantError(t, "Create", err, directory.ErrConflict)
}

func TestPoolThatHasLostItsMarkersIsRefused(t *testing.T) {
	b := newBench(t)
	b.create(specFor("shop"))
	b.data("shop")
	must(t, os.Rename(b.path(".berth/volumes"), b.path(".berth/archive/#12"))) // as fsck does, elsewhere
	inner := volumeAt("pvc-2", "shop/inner")
	adopted := volumeAt("pvc-3", "shop")
	adopted.Adopt = true
	for _, restart := range []bool{false, true} {
		if restart {
			b.restart()
		}
		for _, spec := range []directory.Spec{inner, adopted, specFor("shop"), volumeAt("pvc-4", "new")} {
			_, err := b.pool.Create(b.ctx, spec)
			wantError(t, "Create "+spec.Volume, err, directory.ErrWrongPool)
			for _, word := range []string{"pool.json is there", ".berth/volumes", "restore it", "never had a volume"} {
				if err != nil && !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not say %q", err, word)
				}
			}
		}
		wantError(t, "Delete", b.delete(specFor("shop")), directory.ErrWrongPool)
		wantError(t, "Open", b.pool.Open(b.ctx), directory.ErrWrongPool)
		b.wantTree("shop", "shop/data")
	}
	must(t, os.Rename(b.path(".berth/archive/#12"), b.path(".berth/volumes")))
	b.create(volumeAt("pvc-4", "new"))
	must(t, b.delete(specFor("shop")))
}

// An earlier version wrote pool.json first, and a crash may have left it so.
func TestPoolWhoseInitialisationAnEarlierVersionHasNotFinished(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, b.delete(specFor("vol")))
	must(t, b.pool.PurgeTrash(b.ctx))
	for _, dir := range []string{"volumes", "trash", "archive"} {
		must(t, os.Remove(b.path(".berth/"+dir)))
	}
	b.restart()
	_, err := b.pool.Create(b.ctx, specFor("vol"))
	wantError(t, "Create", err, directory.ErrWrongPool)
	must(t, os.Mkdir(b.path(".berth/volumes"), 0o700)) // as the text says
	b.create(specFor("vol"))
	b.wantAdmin("", "archive", "lock", "pool.json", "trash", "volumes")
}

// TestInitialisationIsFinishedAfterACrash cuts it off at every call, also in a base
// that an administrator has released and that is not empty.
func TestInitialisationIsFinishedAfterACrash(t *testing.T) {
	for kind, fault := range faultKinds {
		t.Run(kind, func(t *testing.T) {
			for nth := 1; nth <= enoughCalls; nth++ {
				b, hit := newFastBench(t), false
				must(t, os.Mkdir(b.path("theirs"), 0o755))
				must(t, os.Mkdir(b.path(".berth"), 0o700))
				faults := fault(nth, &hit)
				faults.serialise()
				faults.Filesystem = local(t, b.base)
				faulty := poolOn(t, faults, func(*directory.Options) {})
				_, failed := faulty.Create(b.ctx, specFor("vol"))
				must(t, faulty.Close())
				if _, err := os.Lstat(b.path(".berth/pool.json")); err == nil {
					for _, dir := range []string{"volumes", "trash", "archive"} {
						if _, err := os.Lstat(b.path(".berth/" + dir)); err != nil {
							t.Errorf("pool.json is there before %s", dir)
						}
					}
				}
				b.create(specFor("vol"))
				b.wantAdmin("", "archive", "lock", "pool.json", "trash", "volumes")
				must(t, b.pool.Close())
				if t.Failed() {
					t.Fatalf("call %d, which failed with: %v", nth, failed)
				}
				if !hit {
					return
				}
			}
			t.Fatal("the operation never gets through")
		})
	}
}
