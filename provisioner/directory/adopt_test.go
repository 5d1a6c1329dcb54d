package directory_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// adopting is the volume that adopts path.
func adopting(volume, path string) directory.Spec {
	spec := volumeAt(volume, path)
	spec.Adopt = true
	return spec
}

func (b *bench) release() {
	b.t.Helper()
	must(b.t, os.Mkdir(b.path(".berth"), 0o700))
}

func TestAdoptionMakesNothing(t *testing.T) {
	for _, path := range []string{"new", "team/new", "team/a/new"} {
		b := newBench(t)
		b.release()
		must(t, os.Mkdir(b.path("team"), 0o750))
		_, err := b.pool.Create(b.ctx, adopting("pvc-1", path))
		wantError(t, "Create", err, directory.ErrNoDirectory)
		wantError(t, "Create", err, os.ErrNotExist)
		if provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), `"`+path+`"`) || !strings.Contains(err.Error(), "move it there") {
			t.Errorf("%v", err)
		}
		b.wantTree("team")
		b.wantAdmin("volumes")
		// The path is free: somebody brings the directory, or a volume is made there.
		must(t, os.MkdirAll(b.path(path), 0o750))
		b.data(path)
		if m := b.create(adopting("pvc-1", path)); !m.Adopted || m.ParentsMade != 0 {
			t.Errorf("%+v", m)
		}
	}
}

// TestWhatAnEarlierBerthMadeIsNotCalledAdopted: it made a directory when it found
// none, and ended before there was a PersistentVolume.
func TestWhatAnEarlierBerthMadeIsNotCalledAdopted(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	_, err := b.pool.Create(b.ctx, adopting("pvc-1", "vol"))
	wantInfeasible(t, "Create", "adopt", err, "StorageClass parameter existing", `"vol"`, "delete the claim")
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantTree()
}

func TestAnAdoptionGoesOnAfterACrash(t *testing.T) {
	b := newBench(t)
	b.release()
	must(t, os.MkdirAll(b.path("a/theirs"), 0o750))
	b.data("a/theirs")
	first := b.create(adopting("pvc-1", "a/theirs"))
	b.restart()
	if again := b.create(adopting("pvc-1", "elsewhere")); again.Path != first.Path || !again.Adopted {
		t.Errorf("%+v, was %+v", again, first)
	}
	// What goes meanwhile is not made anew, nor is what it was in.
	must(t, os.RemoveAll(b.path("a")))
	_, err := b.pool.Create(b.ctx, adopting("pvc-1", "a/theirs"))
	wantError(t, "Create", err, directory.ErrNoDirectory)
	b.wantTree()
}

func TestOneOfManyAdopts(t *testing.T) {
	b := newBench(t)
	b.release()
	must(t, os.Mkdir(b.path("theirs"), 0o750))
	b.data("theirs")
	var (
		all sync.WaitGroup
		mu  sync.Mutex
		won []string
	)
	for _, volume := range []string{"pvc-1", "pvc-2", "pvc-3", "pvc-4", "pvc-5", "pvc-6", "pvc-7", "pvc-8"} {
		all.Go(func() {
			_, err := b.pool.Create(b.ctx, adopting(volume, "theirs"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, volume+".json")
			} else if !errors.Is(err, directory.ErrConflict) {
				t.Errorf("%s: %v", volume, err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%v have the directory", won)
	}
	b.wantAdmin("volumes", won...)
	b.wantData("theirs")
}

func TestAdoptableChangesNothing(t *testing.T) {
	b := newBench(t)
	must(t, os.MkdirAll(b.path("a/theirs"), 0o750))
	must(t, os.MkdirAll(b.path("pool/.berth"), 0o750))
	must(t, os.WriteFile(b.path("file"), nil, 0o600))
	must(t, os.Symlink("a", b.path("link")))
	for path, want := range map[string]error{
		"a/theirs":    nil,
		"a":           nil,
		"b":           directory.ErrNoDirectory,
		"a/b/c":       directory.ErrNoDirectory,
		"pool":        directory.ErrConflict,
		"file":        directory.ErrNotADirectory,
		"link/theirs": directory.ErrNotADirectory,
	} {
		if err := b.pool.Adoptable(b.ctx, path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if err := b.pool.Adoptable(b.ctx, ".berth/volumes"); err == nil {
		t.Error("Berth's own may be adopted")
	}
	if _, err := os.Lstat(b.path(".berth")); !os.IsNotExist(err) {
		t.Error("it was initialised")
	}
	b.release()
	b.create(adopting("pvc-1", "a/theirs"))
	for _, path := range []string{"a/theirs", "a", "a/theirs/x"} {
		wantError(t, path, b.pool.Adoptable(b.ctx, path), directory.ErrConflict)
	}
}

func TestBlankIsWhatWasNeverUsed(t *testing.T) {
	for name, prepare := range map[string]func(b *bench){
		"empty":      func(*bench) {},
		"a new disk": func(b *bench) { must(t, os.Mkdir(b.path("lost+found"), 0o700)) },
		"released":   (*bench).release,
		"not empty":  func(b *bench) { must(t, os.Mkdir(b.path("theirs"), 0o700)) },
		"in use":     func(b *bench) { b.create(specFor("vol")) },
	} {
		b := newBench(t)
		prepare(b)
		blank, err := b.pool.Blank(b.ctx)
		if want := name == "empty" || name == "a new disk"; blank != want || err != nil {
			t.Errorf("%s: %t, %v", name, blank, err)
		}
	}
}

func TestHoldsCountsWhatADirectoryTakes(t *testing.T) {
	const mi = 1 << 20
	b := newBench(t)
	must(t, os.MkdirAll(b.path("theirs/a/b"), 0o750))
	must(t, os.WriteFile(b.path("theirs/one"), make([]byte, 2*mi), 0o600))
	must(t, os.WriteFile(b.path("theirs/a/b/two"), make([]byte, 3*mi), 0o600))
	must(t, os.Link(b.path("theirs/one"), b.path("theirs/a/again")))
	must(t, os.Symlink("/", b.path("theirs/link")))
	must(t, os.Truncate(b.path("theirs/a/b/two"), 1<<40)) // a hole takes nothing
	held, err := b.pool.Holds(b.ctx, "theirs", 1<<50)
	if err != nil || held < 5*mi || held > 6*mi {
		t.Errorf("Holds = %d, %v", held, err)
	}
	if held, err := b.pool.Holds(b.ctx, "theirs", mi); err != nil || held < mi {
		t.Errorf("Holds = %d, %v", held, err)
	}
	if _, err := b.pool.Holds(b.ctx, "missing", mi); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Holds = %v", err)
	}
}
