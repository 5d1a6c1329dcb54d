package directory_test

import (
	"context"
	"errors"
	"os"
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
