package directory

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBaseMustBeAbsoluteAndClean(t *testing.T) {
	for path, ok := range map[string]bool{
		"/mnt/ssd": true, "/a": true,
		"/": false, "": false, ".": false, "mnt": false, "/mnt/": false, "/mnt/../etc": false, "/mnt//ssd": false, "/mnt/./ssd": false, "//": false,
		"/mnt/\x00": false,
	} {
		if err := CheckBase(path); (err == nil) != ok {
			t.Errorf("CheckBase(%q) = %v", path, err)
		}
	}
}

func TestBaseThatIsNoDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustDo(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
	mustDo(t, os.Symlink("real", filepath.Join(dir, "link")))
	mustDo(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	for name, want := range map[string]error{"link": syscall.ENOTDIR, "file": syscall.ENOTDIR, "missing": syscall.ENOENT} {
		local, err := NewLocal(filepath.Join(dir, name), LocalOptions{})
		mustDo(t, err)
		if _, err := local.Root(t.Context()); !errors.Is(err, want) {
			t.Errorf("Root of %s = %v, want %v", name, err, want)
		}
	}
}

func TestMountPointIsNotOpened(t *testing.T) {
	for _, old := range []bool{false, true} {
		base := t.TempDir()
		bindMount(t, base, "bind")
		tmpfsMount(t, filepath.Join(base, "tmpfs"))
		mustDo(t, os.Mkdir(filepath.Join(base, "plain"), 0o755))
		fd, err := unix.Open(base, openDirectory, 0)
		mustDo(t, err)
		defer unix.Close(fd)
		open := openChild
		if old {
			open = openChildOldKernel
		}
		for name, want := range map[string]error{"bind": ErrCrossesMount, "tmpfs": ErrCrossesMount, "plain": nil} {
			child, err := open(fd, name)
			if !errors.Is(err, want) {
				t.Errorf("open %s (old kernel: %t) = %v, want %v", name, old, err, want)
			}
			if err == nil {
				unix.Close(child)
			}
		}
	}
}

func TestOldKernelRefusesLinksToo(t *testing.T) {
	base := t.TempDir()
	mustDo(t, os.Symlink(".", filepath.Join(base, "link")))
	fd, err := unix.Open(base, openDirectory, 0)
	mustDo(t, err)
	defer unix.Close(fd)
	if _, err := openChildOldKernel(fd, "link"); !notDirectory(err) {
		t.Errorf("open = %v", err)
	}
}

func TestRequireMountWantsAFilesystemOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	bindMount(t, dir, "bind")
	tmpfsMount(t, filepath.Join(dir, "disk"))
	mustDo(t, os.Mkdir(filepath.Join(dir, "disk", "below"), 0o755))
	mustDo(t, os.Mkdir(filepath.Join(dir, "plain"), 0o755))
	mustDo(t, os.Mkdir(filepath.Join(dir, "container"), 0o755))
	// What a container sees of a disk that is mounted on the node.
	mustDo(t, unix.Mount(filepath.Join(dir, "disk"), filepath.Join(dir, "container"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "container"), unix.MNT_DETACH) })

	for name, ok := range map[string]bool{"disk": true, "container": true, "disk/below": false, "plain": false, "bind": false} {
		local, err := NewLocal(filepath.Join(dir, name), LocalOptions{RequireMount: true})
		mustDo(t, err)
		for range 2 { // the second time it is known
			root, err := local.Root(t.Context())
			if (err == nil) != ok || !ok && name != "bind" && !errors.Is(err, ErrNotMounted) {
				t.Errorf("Root of %s = %v, want ok %t", name, err, ok)
			}
			if err == nil {
				root.Close()
			}
		}
	}
}

func TestRequireMountNoticesAnUnmount(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	unmount := tmpfsMount(t, dir)
	local, err := NewLocal(dir, LocalOptions{RequireMount: true})
	mustDo(t, err)
	root, err := local.Root(t.Context())
	mustDo(t, err)
	root.Close()
	unmount()
	if _, err := local.Root(t.Context()); err == nil {
		t.Error("the directory below an unmounted disk was opened")
	}
}

// bindMount mounts a directory of the same filesystem at base/name: its device
// number gives nothing away.
func bindMount(t *testing.T, base, name string) {
	t.Helper()
	needMounts(t)
	target := filepath.Join(base, name)
	mustDo(t, os.Mkdir(target, 0o755))
	mustDo(t, unix.Mount(t.TempDir(), target, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func tmpfsMount(t *testing.T, target string) (unmount func()) {
	t.Helper()
	needMounts(t)
	mustDo(t, os.Mkdir(target, 0o755))
	mustDo(t, unix.Mount("tmpfs", target, "tmpfs", 0, "size=1m"))
	unmount = func() { _ = unix.Unmount(target, unix.MNT_DETACH) }
	t.Cleanup(unmount)
	return unmount
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
