package directory_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
)

// bench is a base on this machine's disk and the pool on it.
type bench struct {
	t    *testing.T
	base string
	pool *directory.Pool
	ctx  context.Context
}

func newBench(t *testing.T) *bench {
	t.Helper()
	base := t.TempDir()
	b := &bench{t: t, base: base, pool: newPool(t, base), ctx: t.Context()}
	return b
}

// newFastBench is newBench in memory where there is some, for tests that go
// through very many bases.
func newFastBench(t *testing.T) *bench {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		return newBench(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	return &bench{t: t, base: base, pool: newPool(t, base), ctx: t.Context()}
}

// restart replaces the pool by one that knows nothing, as a crash does.
func (b *bench) restart() {
	b.t.Helper()
	must(b.t, b.pool.Close())
	b.pool = newPool(b.t, b.base)
}

func (b *bench) path(rel string) string { return filepath.Join(b.base, rel) }

func (b *bench) create(spec directory.Spec) directory.Marker {
	b.t.Helper()
	m, err := b.pool.Create(b.ctx, spec)
	must(b.t, err)
	return m
}

func (b *bench) delete(spec directory.Spec) error {
	return b.pool.Delete(b.ctx, spec.Volume, directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path, OnDelete: spec.OnDelete})
}

// data puts a file into the volume at path.
func (b *bench) data(path string) {
	b.t.Helper()
	must(b.t, os.WriteFile(b.path(path+"/data"), []byte("precious"), 0o644))
}

func (b *bench) wantData(path string) {
	b.t.Helper()
	if got, err := os.ReadFile(b.path(path + "/data")); err != nil || string(got) != "precious" {
		b.t.Errorf("data of %s: %q, %v", path, got, err)
	}
}

// wantTree checks everything below the base but .berth.
func (b *bench) wantTree(want ...string) {
	b.t.Helper()
	var got []string
	for _, p := range tree(b.t, b.base) {
		if p != ".berth" && !strings.HasPrefix(p, ".berth/") {
			got = append(got, p)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("below the base: %s", diff)
	}
}

// wantAdmin checks the names in a directory of .berth.
func (b *bench) wantAdmin(dir string, want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, names(b.t, b.path(".berth/"+dir))); diff != "" {
		b.t.Errorf(".berth/%s: %s", dir, diff)
	}
}

func (b *bench) trashCount() int {
	b.t.Helper()
	return len(names(b.t, b.path(".berth/trash")))
}

// editMarker changes the marker of volume behind the pool's back.
func (b *bench) editMarker(volume string, edit func(map[string]any)) {
	b.t.Helper()
	file := b.path(".berth/volumes/" + volume + ".json")
	data, err := os.ReadFile(file)
	must(b.t, err)
	var fields map[string]any
	must(b.t, json.Unmarshal(data, &fields))
	edit(fields)
	data, err = json.Marshal(fields)
	must(b.t, err)
	must(b.t, os.WriteFile(file, data, 0o600))
}

func newPool(tb testing.TB, base string) *directory.Pool {
	return newPoolWith(tb, base, func(*directory.Options) {})
}

func newPoolWith(tb testing.TB, base string, change func(*directory.Options)) *directory.Pool {
	tb.Helper()
	local, err := directory.NewLocal(base, directory.LocalOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return poolOn(tb, local, change)
}

func poolOn(tb testing.TB, filesystem directory.Filesystem, change func(*directory.Options)) *directory.Pool {
	tb.Helper()
	options := directory.Options{Name: "default", Driver: "test", Log: logr.Discard()}
	change(&options)
	pool := directory.NewPool(filesystem, options)
	tb.Cleanup(func() { pool.Close() })
	return pool
}

// specFor is the volume pvc-1 at path.
func specFor(path string) directory.Spec { return volumeAt("pvc-1", path) }

func volumeAt(volume, path string) directory.Spec {
	return directory.Spec{
		Volume:    volume,
		Claim:     types.NamespacedName{Namespace: "ns", Name: "claim"},
		ClaimUID:  types.UID("uid-of-" + volume),
		Class:     "class",
		SizeBytes: 1 << 30,
		Path:      path,
		OnDelete:  directory.OnDeleteDelete,
		Mode:      0o770,
		UID:       new(uint32(os.Geteuid())),
		GID:       new(uint32(os.Getegid())),
	}
}

func tree(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(root, path); rel != "." {
			found = append(found, rel)
		}
		return nil
	}))
	return found
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, op string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s = %v, want %v", op, err, want)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
