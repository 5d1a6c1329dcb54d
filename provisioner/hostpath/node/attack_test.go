package node_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// ward is a server whose pool has a volume with data in it, and a directory beside
// the pool. Neither may change, whatever a tenant or a caller does.
type ward struct {
	t      *testing.T
	base   string
	server *node.Server
	client csi.ControllerClient
	victim *csi.Volume
	canary string
	before [2]map[string]string
}

func newWard(t *testing.T) *ward {
	t.Helper()
	dir := memoryDir(t)
	w := &ward{t: t, base: filepath.Join(dir, "pool"), canary: filepath.Join(dir, "outside")}
	must(t, os.MkdirAll(filepath.Join(w.base, ".berth"), 0o700))
	for _, sub := range []string{"vol", "app/vol"} {
		must(t, os.MkdirAll(filepath.Join(w.canary, sub), 0o751))
		must(t, os.WriteFile(filepath.Join(w.canary, sub, "data"), []byte("precious"), 0o640))
	}
	w.server = newServer(t, node.Options{NodeName: "node-1", Pools: map[string][]string{wire.DefaultPool: {w.base}}})
	w.client = dial(t, w.server)
	w.victim = create(t, w.client, ask("pvc-victim", gi, wire.ParamPath, "tenant-b/victim"))
	must(t, os.WriteFile(filepath.Join(directoryOf(w.victim), "data"), []byte("precious"), 0o640))
	w.before = [2]map[string]string{snapshot(t, w.canary), snapshot(t, directoryOf(w.victim))}
	t.Cleanup(w.check)
	return w
}

// check compares what must not have changed with what it was.
func (w *ward) check() {
	w.t.Helper()
	after := [2]map[string]string{snapshot(w.t, w.canary), snapshot(w.t, directoryOf(w.victim))}
	if diff := cmp.Diff(w.before, after); diff != "" {
		w.t.Errorf("outside the pool, or in another volume: %s", diff)
	}
	if _, err := os.Stat(filepath.Join(w.base, ".berth/volumes/pvc-victim.json")); err != nil {
		w.t.Error(err)
	}
}

// delete asks for the deletion of a volume and returns the error.
func (w *ward) delete(id string) error {
	_, err := w.client.DeleteVolume(w.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

func (w *ward) path(name string) string { return filepath.Join(w.base, name) }

// snapshot describes everything in dir and dir itself.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		content := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		}
		got[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%v %d:%d inode %d %q", info.Mode(), st.Uid, st.Gid, st.Ino, content)
		return nil
	}))
	return got
}

// memoryDir is a directory in memory, where making things durable costs nothing, or
// else one on disk.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestForgedVolumeIDsDoNothing(t *testing.T) {
	w := newWard(t)
	mine := create(t, w.client, ask("pvc-mine", gi, wire.ParamPath, "tenant-a/mine"))
	seal := mine.GetVolumeId()[strings.LastIndexByte(mine.GetVolumeId(), '/')+1:]
	forged := map[string]codes.Code{
		// What no volume can be called does not exist, so it is gone already.
		"":                                    codes.InvalidArgument,
		"/":                                   codes.OK,
		"..":                                  codes.OK,
		"tenant-b/victim":                     codes.OK,
		"/etc":                                codes.OK,
		"default/../../etc/" + seal:           codes.OK,
		"default/..%2F..%2Fetc/" + seal:       codes.OK,
		"default/pvc-victim":                  codes.OK,
		"default/pvc-victim/":                 codes.OK,
		"default//" + seal:                    codes.OK,
		"default/./" + seal:                   codes.OK,
		"default/../" + seal:                  codes.OK,
		"default/.berth/" + seal:              codes.OK,
		"../pvc-victim/" + seal:               codes.OK,
		"default/pvc-victim\x00/" + seal:      codes.OK,
		"default\x00/pvc-victim/" + seal:      codes.OK,
		"default/pvc-victim/" + seal + "\x00": codes.OK,
		"default/pvc-victim/" + seal + "/..":  codes.OK,
		"default/PVC-VICTIM/" + seal:          codes.OK,
		"default/pvc-victim /" + seal:         codes.OK,
		"default/pvc-victim\n/" + seal:        codes.OK,
		"default/pvc-victim.json/" + seal:     codes.OK,
		strings.Repeat("x", 1<<20):            codes.OK,
		"default/" + strings.Repeat("v", 241) + "/" + seal: codes.OK,
		"default/pvc-victim/" + strings.Repeat("A", 4096):  codes.OK,
		// What could be one, and is not.
		"default/pvc-victim/" + seal:                                         codes.FailedPrecondition, // another's seal
		"default/pvc-victim/" + wire.Seal("uid-pvc-victim", "victim"):        codes.FailedPrecondition, // another path
		"default/pvc-victim/" + wire.Seal("uid-x", "tenant-b/victim"):        codes.FailedPrecondition, // another claim
		"default/pvc-victim/" + strings.Repeat("A", 22):                      codes.FailedPrecondition,
		"other/pvc-victim/" + wire.Seal("uid-pvc-victim", "tenant-b/victim"): codes.FailedPrecondition, // another pool
		"default/pvc-gone/" + seal:                                           codes.OK,
	}
	for id, want := range forged {
		err := w.delete(id)
		if wantCode(t, err, want); err != nil && len(err.Error()) > 1024 {
			t.Errorf("the answer to %.40q has %d bytes", id, len(err.Error()))
		}
		_, err = w.client.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * gi}})
		if err == nil {
			t.Errorf("%.40q was expanded", id)
		}
		_, err = w.client.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: id})
		if err == nil {
			t.Errorf("%.40q was described", id)
		}
		ctx := wire.AttachIfEmpty(t.Context(), directoryOf(w.victim))
		_, _ = w.client.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		w.check()
	}
	must(t, w.delete(mine.GetVolumeId()))
}

// TestForgedExpectationsDoNothing: what a caller says of a volume is compared with
// its marker, whoever the caller is.
func TestForgedExpectationsDoNothing(t *testing.T) {
	w := newWard(t)
	victimID := w.victim.GetVolumeId()
	honest := wire.Expectation{Source: directoryOf(w.victim)}
	honest.ClaimUID, honest.Path = "uid-pvc-victim", "tenant-b/victim"
	for name, change := range map[string]func(*wire.Expectation){
		"another claim":     func(e *wire.Expectation) { e.ClaimUID = "uid-mine" },
		"another path":      func(e *wire.Expectation) { e.Path = "tenant-b" },
		"a path upwards":    func(e *wire.Expectation) { e.Path = "../outside" },
		"the base":          func(e *wire.Expectation) { e.Path = "." },
		"Berth's own":       func(e *wire.Expectation) { e.Path = ".berth" },
		"a path with a NUL": func(e *wire.Expectation) { e.Path = "tenant-b/victim\x00" },
		"a source outside":  func(e *wire.Expectation) { e.Source = w.canary },
		"a source by dots":  func(e *wire.Expectation) { e.Source = w.base + "/x/../tenant-b/victim" },
		"the source /etc":   func(e *wire.Expectation) { e.Source = "/etc" },
		"no source":         func(e *wire.Expectation) { e.Source = "" },
	} {
		for _, fitting := range []bool{false, true} { // whether the id goes with the lie
			e := honest
			change(&e)
			id := victimID
			if fitting {
				id = wire.NewVolumeID("default", "pvc-victim", e.ClaimUID, e.Path).String()
			}
			_, err := w.client.DeleteVolume(e.Attach(t.Context()), &csi.DeleteVolumeRequest{VolumeId: id})
			if err == nil {
				t.Errorf("%s: deleted", name)
			}
			w.check()
		}
	}
}

// TestSymlinkSwappedUnderTheServer swaps a directory of the pool with a link out of
// it, or to another volume, as fast as it can, below volumes that are made, expanded
// and deleted.
func TestSymlinkSwappedUnderTheServer(t *testing.T) {
	const tries = 10_000
	for name, race := range map[string]struct {
		swapped string
		inside  bool
		path    string
		tries   int
	}{
		"parent, out of the pool":   {"app", false, "app/vol", tries},
		"volume, out of the pool":   {"vol", false, "vol", tries},
		"volume, to another volume": {"vol", true, "vol", tries / 5},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard(t)
			target := w.canary
			if race.inside {
				target = directoryOf(w.victim)
			}
			link := w.path("link")
			must(t, os.MkdirAll(w.path(race.swapped), 0o755))
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
						_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, w.path(race.swapped), unix.RENAME_EXCHANGE)
					}
				}
			})
			made, removed, refused := 0, 0, 0
			// How often a call comes between two swaps is the scheduler's to say: on a
			// slow machine it takes more tries until enough of them did.
			raced := func() bool { return made >= race.tries/20 && refused > 0 }
			for n := 0; n < race.tries || !raced() && n < 10*race.tries; n++ {
				volume := fmt.Sprintf("pvc-%d", n)
				// What is there is adopted, what is not is made.
				existing := []string{wire.ExistingAdopt, wire.ExistingRefuse}[n%2]
				_, err := w.client.CreateVolume(t.Context(), ask(volume, gi, wire.ParamPath, race.path, wire.ParamMode, "0777", wire.ParamExisting, existing))
				if err == nil {
					made++
				} else {
					refused++
				}
				id := wire.NewVolumeID("default", volume, types.UID("uid-"+volume), race.path).String()
				for w.delete(id) != nil { // or its path stays taken
					refused++
				}
				removed++
				// A swap may have hit a rename, and the link gone with the volume.
				switch first, second := isLink(link), isLink(w.path(race.swapped)); {
				case !first && !second:
					_ = os.RemoveAll(link)
					_ = os.Symlink(target, link)
				case first && second:
					_ = os.Remove(w.path(race.swapped))
					_ = os.MkdirAll(w.path(race.swapped), 0o755)
				}
			}
			close(stop)
			swapper.Wait()
			t.Logf("%d volumes were made, %d are gone, %d calls were refused", made, removed, refused)
			if !raced() {
				t.Error("the race was never run")
			}
		})
	}
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSymlink
}

// TestNoVolumeIsMadeOnWhatIsNoDirectory: special files in the pool are neither
// opened, nor taken for a volume, nor removed.
func TestNoVolumeIsMadeOnWhatIsNoDirectory(t *testing.T) {
	w := newWard(t)
	must(t, unix.Mkfifo(w.path("fifo"), 0o666))
	must(t, os.Symlink(w.canary, w.path("link")))
	must(t, os.Symlink("/etc", w.path("etc")))
	must(t, os.WriteFile(w.path("file"), nil, 0o666))
	kinds := []string{"fifo", "link", "etc", "file"}
	if os.Geteuid() == 0 {
		for name, mode := range map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK} {
			must(t, unix.Mknod(w.path(name), mode|0o666, int(unix.Mkdev(1, 3))))
			kinds = append(kinds, name)
		}
	}
	before := snapshot(t, w.base)
	n := 0
	for _, kind := range kinds {
		for _, path := range []string{kind, kind + "/vol", kind + "/a/vol"} {
			for _, existing := range []string{wire.ExistingRefuse, wire.ExistingAdopt} {
				n++
				_, err := w.client.CreateVolume(t.Context(), ask(pvName(n), gi, wire.ParamPath, path, wire.ParamExisting, existing))
				wantCode(t, err, codes.InvalidArgument, kind)
			}
		}
	}
	if diff := cmp.Diff(before, snapshot(t, w.base)); diff != "" {
		t.Error(diff)
	}
}

// TestSpecialFilesInAVolumeGoWithIt: what a tenant has made in a volume does not
// hold up its end.
func TestSpecialFilesInAVolumeGoWithIt(t *testing.T) {
	w := newWard(t)
	v := create(t, w.client, ask("pvc-1", gi))
	dir := directoryOf(v)
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	must(t, os.Symlink(w.canary, filepath.Join(dir, "link")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "passwd")))
	must(t, os.Link(directoryOf(w.victim)+"/data", filepath.Join(dir, "hard")))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	}
	must(t, w.delete(v.GetVolumeId()))
	w.purge()
	if left := entries(t, w.path(".berth/trash")); len(left) > 0 {
		t.Errorf("in the trash: %v", left)
	}
}

// TestBindMountInAVolumeKeepsWhatItShows: an administrator, or a tenant with the
// right to, has mounted something in a volume that is deleted then.
func TestBindMountInAVolumeKeepsWhatItShows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	w := newWard(t)
	v := create(t, w.client, ask("pvc-1", gi))
	inside := filepath.Join(directoryOf(v), "a/mount")
	must(t, os.MkdirAll(inside, 0o755))
	must(t, unix.Mount(w.canary, inside, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		for _, at := range []string{"/a/mount", "/mount"} { // where the purge leaves it
			_ = unix.Unmount(w.trashed("pvc-1")+at, unix.MNT_DETACH)
		}
	})
	t.Cleanup(func() { _ = unix.Unmount(inside, unix.MNT_DETACH) })

	err := w.delete(v.GetVolumeId())
	t.Logf("delete: %v", err)
	w.purge()
	w.check()
	if err != nil {
		// A kernel that does not move a directory with a mount in it.
		must(t, unix.Unmount(inside, 0))
		must(t, w.delete(v.GetVolumeId()))
	}

	// The volume itself is a mount point.
	v2 := create(t, w.client, ask("pvc-2", gi))
	must(t, unix.Mount(w.canary, directoryOf(v2), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(directoryOf(v2), unix.MNT_DETACH) })
	wantCode(t, w.delete(v2.GetVolumeId()), codes.FailedPrecondition, "mount point")
	w.check()
	must(t, unix.Unmount(directoryOf(v2), 0))
	must(t, w.delete(v2.GetVolumeId()))
}

// TestVolumeReplacedByASymlinkIsNotDeleted: nor is what the link leads to.
func TestVolumeReplacedByASymlinkIsNotDeleted(t *testing.T) {
	for _, target := range []string{"/etc", "victim", "outside"} {
		t.Run(target, func(t *testing.T) {
			w := newWard(t)
			switch target {
			case "victim":
				target = directoryOf(w.victim)
			case "outside":
				target = w.canary
			}
			etc := entries(t, "/etc")
			v := create(t, w.client, ask("pvc-1", gi))
			must(t, os.Rename(directoryOf(v), directoryOf(v)+"-moved"))
			must(t, os.Symlink(target, directoryOf(v)))
			wantCode(t, w.delete(v.GetVolumeId()), codes.FailedPrecondition, "not a plain directory")
			ctx := wire.AttachIfEmpty(t.Context(), directoryOf(v))
			_, err := w.client.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()})
			wantCode(t, err, codes.FailedPrecondition)
			health, err := w.client.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: v.GetVolumeId()})
			must(t, err)
			if got := health.GetVolumeHealth().GetHealthStatuses(); len(got) != 1 || got[0].GetReason() != "NotADirectory" {
				t.Errorf("health = %v", got)
			}
			w.purge()
			if !isLink(directoryOf(v)) {
				t.Error("the link is gone")
			}
			if diff := cmp.Diff(etc, entries(t, "/etc")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestParentReplacedByASymlinkIsNotFollowed: neither to delete a volume nor to make
// one.
func TestParentReplacedByASymlinkIsNotFollowed(t *testing.T) {
	w := newWard(t)
	v := create(t, w.client, ask("pvc-1", gi, wire.ParamPath, "app/vol"))
	must(t, os.Rename(w.path("app"), w.path("app-moved")))
	must(t, os.Symlink(w.canary+"/app", w.path("app")))
	wantCode(t, w.delete(v.GetVolumeId()), codes.FailedPrecondition, "not a plain directory")
	_, err := w.client.CreateVolume(t.Context(), ask("pvc-1", gi, wire.ParamPath, "app/vol"))
	wantCode(t, err, codes.InvalidArgument, "symbolic link")
	_, err = w.client.CreateVolume(t.Context(), ask("pvc-2", gi, wire.ParamPath, "app/vol2"))
	wantCode(t, err, codes.InvalidArgument, "symbolic link")
	w.purge()
	w.check()
	must(t, os.Remove(w.path("app")))
	must(t, os.Rename(w.path("app-moved"), w.path("app")))
	must(t, w.delete(v.GetVolumeId()))
}

// TestPoolReplacedByASymlinkIsRefused: the base itself is looked at anew each time.
func TestPoolReplacedByASymlinkIsRefused(t *testing.T) {
	w := newWard(t)
	v := create(t, w.client, ask("pvc-1", gi))
	must(t, os.Rename(w.base, w.base+"-real"))
	t.Cleanup(func() {
		must(t, os.Remove(w.base))
		must(t, os.Rename(w.base+"-real", w.base))
	})
	must(t, os.Symlink(w.canary, w.base))
	wantCode(t, w.delete(v.GetVolumeId()), codes.FailedPrecondition, "symbolic link")
	_, err := w.client.CreateVolume(t.Context(), ask("pvc-2", gi))
	wantCode(t, err, codes.FailedPrecondition, "symbolic link")
}

// purge empties the trash as far as it can be.
func (w *ward) purge() {
	w.t.Helper()
	must(w.t, w.server.PurgeTrash(w.t.Context()))
}

// trashed returns where a deleted volume is.
func (w *ward) trashed(volume string) string {
	for _, name := range entries(w.t, w.path(".berth/trash")) {
		if strings.HasSuffix(name, "-"+volume) {
			return w.path(".berth/trash/" + name)
		}
	}
	return w.path("nothing")
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}
