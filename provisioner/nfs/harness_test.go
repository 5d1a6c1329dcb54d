package nfs_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/test/nfsserver"
)

// The ways to reach a share, each of which has to pass the same tests.
const (
	mounted = "mounted"
	pseudo  = "/export" // what version 4 calls the export
)

// ways are the values of nfsVersion, and a mount.
var ways = []string{"3", "4.0", "4.1", mounted}

// eachWay runs a test over every way to reach a share.
func eachWay(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	for _, way := range ways {
		t.Run(way, func(t *testing.T) { test(t, newBench(t, way, nfsserver.Export{})) })
	}
}

// bench is a driver and a share of a real server.
type bench struct {
	t    *testing.T
	ctx  context.Context
	way  string
	base string // the exported directory
	// outside is a directory beside it, which nothing may touch.
	outside string
	server  *nfsserver.Server
	options nfs.Options
	driver  *nfs.Driver
	// parameters say where the share is.
	parameters []string
}

func newBench(t *testing.T, way string, export nfsserver.Export) *bench {
	t.Helper()
	b := &bench{t: t, ctx: t.Context(), way: way, options: nfs.Options{Log: logr.Discard(), AnswerTimeout: time.Second}}
	dir := t.TempDir()
	b.base, b.outside = filepath.Join(dir, "base"), filepath.Join(dir, "outside")
	must(t, os.Mkdir(b.base, 0o755))
	must(t, os.Mkdir(b.outside, 0o755))
	must(t, os.WriteFile(filepath.Join(b.outside, "precious"), []byte("data"), 0o600))
	if way == mounted {
		b.mount()
	} else {
		export.Path, export.Pseudo = b.base, pseudo
		b.server = nfsserver.ForTest(t, export)
		share := pseudo
		if way == "3" {
			share = b.base
		}
		b.parameters = shareParameters(b.server, share, way)
	}
	b.driver = b.open()
	return b
}

func shareParameters(s *nfsserver.Server, share, version string) []string {
	return []string{
		"server", nfsserver.Address, "share", share, "nfsVersion", version,
		"port", strconv.Itoa(int(s.Port)), "mountPort", strconv.Itoa(int(s.MountPort)),
	}
}

// mount gives the driver a mounted filesystem in place of a server. What a
// kernel's NFS client does differently from a disk's filesystem it can't show.
func (b *bench) mount() {
	b.t.Helper()
	if os.Geteuid() != 0 {
		b.t.Skip("a mount needs root")
	}
	must(b.t, unix.Mount("berth-test", b.base, "tmpfs", 0, "mode=0755"))
	b.t.Cleanup(func() { _ = unix.Unmount(b.base, unix.MNT_DETACH) })
	b.options.Mounts = map[nfs.Share]string{{Server: "nas", Path: pseudo}: b.base}
	b.parameters = []string{"server", "nas", "share", pseudo}
}

func (b *bench) open() *nfs.Driver {
	b.t.Helper()
	driver, err := nfs.New(b.options)
	must(b.t, err)
	b.t.Cleanup(func() { _ = driver.Close() })
	return driver
}

// restart replaces the driver by one that knows nothing.
func (b *bench) restart() {
	b.t.Helper()
	must(b.t, b.driver.Close())
	b.driver = b.open()
}

// ask is the claim ns/NAME for 1 GiB of the bench's share.
func (b *bench) ask(name string, parameters ...string) controller.ProvisionOptions {
	return askFor(name, append(append([]string{}, b.parameters...), parameters...)...)
}

func askFor(name string, parameters ...string) controller.ProvisionOptions {
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "class"},
		Provisioner: nfs.Name,
		Parameters:  map[string]string{},
	}
	for i := 0; i < len(parameters); i += 2 {
		class.Parameters[parameters[i]] = parameters[i+1]
	}
	return controller.ProvisionOptions{
		StorageClass: class,
		PVName:       "pvc-" + name,
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "db"}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("1Gi"),
				}},
			},
		},
	}
}

// provision makes a volume, as the controller would write it.
func (b *bench) provision(opts controller.ProvisionOptions) *corev1.PersistentVolume {
	b.t.Helper()
	volume, state, err := b.driver.Provision(b.ctx, opts)
	must(b.t, err)
	if state != controller.ProvisioningFinished {
		b.t.Errorf("state = %s", state)
	}
	volume.Spec.ClaimRef = &corev1.ObjectReference{Namespace: opts.PVC.Namespace, Name: opts.PVC.Name, UID: opts.PVC.UID}
	return volume
}

// wantRefused wants Provision to fail with an error that says words.
func (b *bench) wantRefused(opts controller.ProvisionOptions, words ...string) {
	b.t.Helper()
	_, _, err := b.driver.Provision(b.ctx, opts)
	wantWords(b.t, err, words...)
}

func (b *bench) wantInfeasible(opts controller.ProvisionOptions, words ...string) {
	b.t.Helper()
	_, _, err := b.driver.Provision(b.ctx, opts)
	if !provisioner.IsInfeasible(err) {
		b.t.Errorf("Provision = %v, want an infeasible error", err)
	}
	wantWords(b.t, err, words...)
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", words)
		return
	}
	if len(err.Error()) > 1024 {
		t.Errorf("the error has %d bytes, an event has room for 1024: %v", len(err.Error()), err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

func (b *bench) path(rel ...string) string {
	return filepath.Join(append([]string{b.base}, rel...)...)
}

// wantVolumes wants the share to hold these directories, beside .berth.
func (b *bench) wantVolumes(want ...string) {
	b.t.Helper()
	wantNames(b.t, b.base, append(want, ".berth")...)
}

// wantUntouched wants what is beside the share to be as it was.
func (b *bench) wantUntouched() {
	b.t.Helper()
	wantNames(b.t, b.outside, "precious")
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	got := map[string]bool{}
	for _, e := range entries {
		got[e.Name()] = true
	}
	for _, name := range want {
		if !got[name] {
			t.Errorf("%s lacks %s", dir, name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s holds %s", dir, name)
	}
}

// wantDirectory wants the directory at path to have mode and owner.
func wantDirectory(t *testing.T, path string, mode, uid, gid uint32) {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR || st.Mode&0o7777 != mode || st.Uid != uid || st.Gid != gid {
		t.Errorf("%s: mode %#o, owner %d:%d; want %#o, %d:%d", path, st.Mode, st.Uid, st.Gid, mode, uid, gid)
	}
}

// runUntil runs the driver's background work until done returns true.
func (b *bench) runUntil(done func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.driver.Run(ctx) }()
	for !done() {
		if ctx.Err() != nil {
			b.t.Fatal("it never came to be")
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	must(b.t, <-ended)
}

func isEmpty(t *testing.T, dir string) bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	return len(entries) == 0
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
