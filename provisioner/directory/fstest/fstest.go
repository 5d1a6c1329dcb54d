// Package fstest checks that a directory.Filesystem keeps the promises that
// package directory relies on. Every implementation runs the same tests.
package fstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Factory returns a filesystem whose base is empty, and the directory of this
// machine that holds the base, in which a test does what a tenant or an
// administrator would.
type Factory func(t *testing.T) (filesystem directory.Filesystem, backdoor string)

// Run runs all tests against the filesystems that factory makes.
func Run(t *testing.T, factory Factory) {
	for name, test := range map[string]func(*testing.T, *fixture){
		"MkdirOpenStat":                        mkdirOpenStat,
		"MissingNamesAreErrNotExist":           missingNames,
		"ExistingNamesAreErrExist":             existingNames,
		"NamesAreSingleComponents":             singleComponents,
		"OpenRefusesWhatIsNoDirectory":         openRefuses,
		"LstatDoesNotFollow":                   lstatDoesNotFollow,
		"RemoveNeverRemovesADirectory":         removeFiles,
		"RmdirOnlyRemovesAnEmptyDirectory":     rmdirEmpty,
		"RenameNeverReplaces":                  renameNeverReplaces,
		"RenameMovesLinksThemselves":           renameMovesLinks,
		"AHandleFollowsItsDirectory":           handleFollowsDirectory,
		"ReadDirSeesEverythingOnce":            readDirAll,
		"ReadDirCanStopEarly":                  readDirStops,
		"ReadDirSurvivesRemovals":              readDirRemoving,
		"WriteFileReplacesAtomically":          writeFile,
		"WriteFileReplacesALinkNotItsTarget":   writeFileLink,
		"ReadFileIsBounded":                    readFileBounded,
		"ReadFileRefusesWhatIsNotRegular":      readFileRegular,
		"SetAttrSetsAllTwelveBits":             setAttr,
		"SpaceIsPlausible":                     space,
		"ACancelledContextStopsBeforeItBegins": cancelled,
		"HandlesMayBeUsedConcurrently":         concurrent,
		"LockIsTakenOnce":                      lock,
	} {
		t.Run(name, func(t *testing.T) {
			filesystem, backdoor := factory(t)
			root, err := filesystem.Root(t.Context())
			if err != nil {
				t.Fatalf("Root: %v", err)
			}
			defer root.Close()
			test(t, &fixture{filesystem: filesystem, root: root, base: backdoor, ctx: t.Context()})
		})
	}
}

type fixture struct {
	filesystem directory.Filesystem
	root       directory.Dir
	base       string
	ctx        context.Context
}

func (f *fixture) path(name string) string { return filepath.Join(f.base, name) }

// mkdir makes and opens a directory through the filesystem under test.
func (f *fixture) mkdir(t *testing.T, name string) directory.Dir {
	t.Helper()
	must(t, f.root.Mkdir(f.ctx, name, 0o755))
	dir, err := f.root.Open(f.ctx, name)
	must(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// clutter makes one of everything that is no directory, and returns the names.
func (f *fixture) clutter(t *testing.T) []string {
	t.Helper()
	must(t, os.Mkdir(f.path("target"), 0o700))
	must(t, os.WriteFile(f.path("file"), []byte("content"), 0o600))
	must(t, os.Symlink("target", f.path("link")))
	must(t, os.Symlink("nowhere", f.path("dangling")))
	must(t, os.Symlink("loop", f.path("loop")))
	must(t, syscall.Mkfifo(f.path("fifo"), 0o644))
	return []string{"file", "link", "dangling", "loop", "fifo"}
}

func mkdirOpenStat(t *testing.T, f *fixture) {
	dir := f.mkdir(t, "d")
	info, err := dir.Stat(f.ctx)
	must(t, err)
	if info.Type != fs.ModeDir {
		t.Errorf("Type = %v, want a directory", info.Type)
	}
	named, err := f.root.Lstat(f.ctx, "d")
	must(t, err)
	if diff := cmp.Diff(info, named); diff != "" {
		t.Errorf("Stat and Lstat differ: %s", diff)
	}
	must(t, dir.Sync(f.ctx))
	must(t, f.root.Sync(f.ctx))
}

func missingNames(t *testing.T, f *fixture) {
	dir := f.mkdir(t, "d")
	for op, call := range map[string]func() error{
		"Lstat":    func() error { _, err := f.root.Lstat(f.ctx, "missing"); return err },
		"Open":     func() error { _, err := f.root.Open(f.ctx, "missing"); return err },
		"Remove":   func() error { return f.root.Remove(f.ctx, "missing") },
		"Rmdir":    func() error { return f.root.Rmdir(f.ctx, "missing") },
		"Rename":   func() error { return f.root.Rename(f.ctx, "missing", dir, "new") },
		"ReadFile": func() error { _, err := f.root.ReadFile(f.ctx, "missing", 10); return err },
	} {
		wantError(t, op, call(), fs.ErrNotExist)
	}
	must(t, os.Remove(f.path("d")))
	wantError(t, "Mkdir in a removed directory", dir.Mkdir(f.ctx, "x", 0o755), fs.ErrNotExist)
}

func existingNames(t *testing.T, f *fixture) {
	for _, name := range append(f.clutter(t), "target") {
		wantError(t, "Mkdir "+name, f.root.Mkdir(f.ctx, name, 0o755), fs.ErrExist)
	}
}

func singleComponents(t *testing.T, f *fixture) {
	dir := f.mkdir(t, "d")
	must(t, os.Mkdir(f.path("d/e"), 0o700))
	for _, name := range []string{"", ".", "..", "d/e", "/", "d/", "../x", "a\x00b"} {
		for op, call := range map[string]func() error{
			"Lstat":       func() error { _, err := f.root.Lstat(f.ctx, name); return err },
			"Open":        func() error { _, err := f.root.Open(f.ctx, name); return err },
			"Mkdir":       func() error { return f.root.Mkdir(f.ctx, name, 0o755) },
			"Remove":      func() error { return f.root.Remove(f.ctx, name) },
			"Rmdir":       func() error { return f.root.Rmdir(f.ctx, name) },
			"Rename from": func() error { return f.root.Rename(f.ctx, name, dir, "new") },
			"Rename to":   func() error { return f.root.Rename(f.ctx, "d", f.root, name) },
			"ReadFile":    func() error { _, err := f.root.ReadFile(f.ctx, name, 10); return err },
			"WriteFile":   func() error { return f.root.WriteFile(f.ctx, name, nil) },
			"Lock":        func() error { _, err := f.root.Lock(f.ctx, name); return err },
		} {
			wantError(t, fmt.Sprintf("%s(%q)", op, name), call(), syscall.EINVAL)
		}
	}
}

func openRefuses(t *testing.T, f *fixture) {
	for _, name := range f.clutter(t) {
		_, err := f.root.Open(f.ctx, name)
		if !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, syscall.ELOOP) {
			t.Errorf("Open(%s) = %v, want ENOTDIR or ELOOP", name, err)
		}
	}
}

func lstatDoesNotFollow(t *testing.T, f *fixture) {
	f.clutter(t)
	want := map[string]fs.FileMode{
		"file": 0, "link": fs.ModeSymlink, "dangling": fs.ModeSymlink, "loop": fs.ModeSymlink,
		"fifo": fs.ModeNamedPipe, "target": fs.ModeDir,
	}
	got := map[string]fs.FileMode{}
	for name := range want {
		info, err := f.root.Lstat(f.ctx, name)
		must(t, err)
		got[name] = info.Type
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func removeFiles(t *testing.T, f *fixture) {
	names := f.clutter(t)
	must(t, os.WriteFile(f.path("target/data"), nil, 0o600))
	must(t, os.Mkdir(f.path("empty"), 0o700))
	wantError(t, "Remove a directory", f.root.Remove(f.ctx, "target"), syscall.EISDIR)
	wantError(t, "Remove an empty directory", f.root.Remove(f.ctx, "empty"), syscall.EISDIR)
	for _, name := range names {
		must(t, f.root.Remove(f.ctx, name))
	}
	wantNames(t, f.base, "empty", "target")
	wantNames(t, f.path("target"), "data")
}

func rmdirEmpty(t *testing.T, f *fixture) {
	for _, name := range f.clutter(t) {
		wantError(t, "Rmdir "+name, f.root.Rmdir(f.ctx, name), syscall.ENOTDIR)
	}
	must(t, os.WriteFile(f.path("target/data"), nil, 0o600))
	wantError(t, "Rmdir", f.root.Rmdir(f.ctx, "target"), syscall.ENOTEMPTY)
	must(t, os.Remove(f.path("target/data")))
	must(t, f.root.Rmdir(f.ctx, "target"))
	wantError(t, "Lstat", lstat(f, "target"), fs.ErrNotExist)
}

func renameNeverReplaces(t *testing.T, f *fixture) {
	names := append(f.clutter(t), "target")
	must(t, os.Mkdir(f.path("dir"), 0o700))
	must(t, os.WriteFile(f.path("plain"), nil, 0o600))
	for _, name := range names {
		wantError(t, "Rename a directory to "+name, f.root.Rename(f.ctx, "dir", f.root, name), fs.ErrExist)
		wantError(t, "Rename a file to "+name, f.root.Rename(f.ctx, "plain", f.root, name), fs.ErrExist)
	}
	to := f.mkdir(t, "to")
	must(t, f.root.Rename(f.ctx, "dir", to, "new"))
	wantNames(t, f.path("to"), "new")
	wantError(t, "Lstat", lstat(f, "dir"), fs.ErrNotExist)
}

func renameMovesLinks(t *testing.T, f *fixture) {
	f.clutter(t)
	to := f.mkdir(t, "to")
	must(t, f.root.Rename(f.ctx, "link", to, "link"))
	info, err := to.Lstat(f.ctx, "link")
	must(t, err)
	if info.Type != fs.ModeSymlink {
		t.Errorf("Type = %v, want a symbolic link", info.Type)
	}
	must(t, lstat(f, "target"))
}

func handleFollowsDirectory(t *testing.T, f *fixture) {
	dir := f.mkdir(t, "d")
	must(t, os.Rename(f.path("d"), f.path("moved")))
	must(t, os.Mkdir(f.path("other"), 0o700))
	must(t, os.Symlink("other", f.path("d")))
	must(t, dir.Mkdir(f.ctx, "child", 0o755))
	must(t, dir.WriteFile(f.ctx, "file", []byte("x")))
	wantNames(t, f.path("moved"), "child", "file")
	wantNames(t, f.path("other"))
}

func readDirAll(t *testing.T, f *fixture) {
	const many = 3000
	var want []string
	for i := range many {
		name := fmt.Sprintf("%05d", i)
		must(t, os.WriteFile(f.path(name), nil, 0o600))
		want = append(want, name)
	}
	for range 2 { // each iteration starts at the beginning
		var got []string
		for e, err := range f.root.ReadDir(f.ctx) {
			must(t, err)
			got = append(got, e.Name)
			if e.Type != 0 && e.Type != fs.ModeIrregular {
				t.Fatalf("Type of %s = %v", e.Name, e.Type)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
}

func readDirStops(t *testing.T, f *fixture) {
	f.clutter(t)
	seen := 0
	for _, err := range f.root.ReadDir(f.ctx) {
		must(t, err)
		seen++
		break
	}
	if seen != 1 {
		t.Errorf("saw %d entries", seen)
	}
}

func readDirRemoving(t *testing.T, f *fixture) {
	for i := range 3000 {
		must(t, os.WriteFile(f.path(fmt.Sprintf("%05d", i)), nil, 0o600))
	}
	for range 100 {
		any := false
		for e, err := range f.root.ReadDir(f.ctx) {
			must(t, err)
			must(t, f.root.Remove(f.ctx, e.Name))
			any = true
		}
		if !any {
			wantNames(t, f.base)
			return
		}
	}
	t.Error("entries are left after 100 passes")
}

func writeFile(t *testing.T, f *fixture) {
	for _, content := range []string{"one", "", strings.Repeat("two", 5000)} {
		must(t, f.root.WriteFile(f.ctx, "file", []byte(content)))
		got, err := f.root.ReadFile(f.ctx, "file", 1<<20)
		must(t, err)
		if string(got) != content {
			t.Errorf("read %d bytes, wrote %d", len(got), len(content))
		}
	}
	info, err := f.root.Lstat(f.ctx, "file")
	must(t, err)
	if info.Mode != 0o600 {
		t.Errorf("mode = %#o, want 0600", info.Mode)
	}
	must(t, os.Mkdir(f.path("dir"), 0o700))
	if err := f.root.WriteFile(f.ctx, "dir", nil); err == nil {
		t.Error("WriteFile replaced a directory")
	}
	wantNames(t, f.base, "dir", "file") // no temporary file either
}

func writeFileLink(t *testing.T, f *fixture) {
	f.clutter(t)
	must(t, os.Symlink("file", f.path("alias")))
	must(t, f.root.WriteFile(f.ctx, "alias", []byte("new")))
	got, err := os.ReadFile(f.path("file"))
	must(t, err)
	if string(got) != "content" {
		t.Errorf("the link's target holds %q", got)
	}
	info, err := f.root.Lstat(f.ctx, "alias")
	must(t, err)
	if info.Type != 0 {
		t.Errorf("Type = %v, want a regular file", info.Type)
	}
}

func readFileBounded(t *testing.T, f *fixture) {
	must(t, os.WriteFile(f.path("file"), bytes.Repeat([]byte("x"), 100), 0o600))
	if got, err := f.root.ReadFile(f.ctx, "file", 100); err != nil || len(got) != 100 {
		t.Errorf("ReadFile = %d bytes, %v", len(got), err)
	}
	_, err := f.root.ReadFile(f.ctx, "file", 99)
	wantError(t, "ReadFile", err, directory.ErrTooLarge)
}

func readFileRegular(t *testing.T, f *fixture) {
	f.clutter(t)
	for _, name := range []string{"link", "dangling", "loop", "fifo", "target"} {
		_, err := f.root.ReadFile(f.ctx, name, 100)
		if !errors.Is(err, syscall.ELOOP) && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("ReadFile(%s) = %v, want ELOOP or EINVAL", name, err)
		}
	}
}

func setAttr(t *testing.T, f *fixture) {
	dir := f.mkdir(t, "d")
	for _, mode := range []uint32{0o700, 0o2775, 0o1777, 0o7777, 0} {
		must(t, dir.SetAttr(f.ctx, directory.Attr{Mode: mode}))
		info, err := dir.Stat(f.ctx)
		must(t, err)
		if info.Mode != mode {
			t.Errorf("mode = %#o, want %#o", info.Mode, mode)
		}
	}
	if os.Geteuid() != 0 {
		t.Log("not root: owners are not tried")
		return
	}
	uid, gid := uint32(12345), uint32(54321)
	must(t, dir.SetAttr(f.ctx, directory.Attr{Mode: 0o6770, UID: &uid, GID: &gid}))
	must(t, dir.SetAttr(f.ctx, directory.Attr{Mode: 0o6770}))
	got, err := dir.Stat(f.ctx)
	must(t, err)
	if diff := cmp.Diff(directory.Info{Type: fs.ModeDir, Mode: 0o6770, UID: uid, GID: gid}, got); diff != "" {
		t.Error(diff)
	}
}

func space(t *testing.T, f *fixture) {
	got, err := f.filesystem.Space(f.ctx)
	must(t, err)
	if got.Total == 0 || got.Free > got.Total {
		t.Errorf("Space = %+v", got)
	}
}

func cancelled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	wantError(t, "Mkdir", f.root.Mkdir(ctx, "d", 0o755), context.Canceled)
	wantError(t, "WriteFile", f.root.WriteFile(ctx, "f", nil), context.Canceled)
	_, err := f.filesystem.Root(ctx)
	wantError(t, "Root", err, context.Canceled)
	wantNames(t, f.base)
}

func concurrent(t *testing.T, f *fixture) {
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			name := fmt.Sprintf("d%d", i)
			for range 20 {
				if err := f.root.Mkdir(f.ctx, name, 0o755); err != nil {
					t.Error(err)
				}
				if err := f.root.WriteFile(f.ctx, "shared", []byte(name)); err != nil {
					t.Error(err)
				}
				if err := f.root.Rmdir(f.ctx, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	wantNames(t, f.base, "shared")
}

func lock(t *testing.T, f *fixture) {
	held, err := f.root.Lock(f.ctx, "lock")
	must(t, err)
	if second, err := f.root.Lock(f.ctx, "lock"); err == nil {
		t.Log("this filesystem has no locks")
		must(t, second.Close())
	} else {
		wantError(t, "Lock", err, directory.ErrLocked)
	}
	must(t, held.Close())
	again, err := f.root.Lock(f.ctx, "lock")
	must(t, err)
	must(t, again.Close())
	f.clutter(t)
	if _, err := f.root.Lock(f.ctx, "link"); err == nil {
		t.Error("Lock followed a symbolic link")
	}
}

func lstat(f *fixture, name string) error {
	_, err := f.root.Lstat(f.ctx, name)
	return err
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

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", dir, diff)
	}
}
