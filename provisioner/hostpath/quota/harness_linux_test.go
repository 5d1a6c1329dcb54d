package quota_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/quota"
	"github.com/berth-storage/berth/test/uml"
)

// What this test binary does when another one starts it.
const (
	helperEnv = "BERTH_TEST_HELPER"
	writer    = "writer"  // PATH SIZE: write until SIZE or an error, which is the exit status
	podRoot   = "podroot" // writer, as root without CAP_SYS_RESOURCE
	crasher   = "crasher" // BASE ACT: an act of a volume's life
	prober    = "prober"  // BASE: what check says
	escaper   = "escaper" // PATH: take a file out of its project
)

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case writer:
		size, _ := strconv.ParseInt(os.Args[2], 10, 64)
		os.Exit(int(write(os.Args[1], size)))
	case podRoot:
		size, _ := strconv.ParseInt(os.Args[2], 10, 64)
		dropSysResource()
		os.Exit(int(write(os.Args[1], size)))
	case crasher:
		if err := live(os.Args[1], os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case escaper:
		if err := quota.Escape(os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case prober:
		fmt.Print(check(os.Args[1]))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper runs this test binary as the user with that id.
func helper(t *testing.T, what string, uid uint32, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return cmd
}

// write appends up to size bytes to the file at path, durably, and returns what
// it failed with.
func write(path string, size int64) syscall.Errno {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = io.CopyN(file, zeros{}, size)
		err = errors.Join(err, file.Sync(), file.Close())
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// dropSysResource makes this thread as mighty as a container's root is.
func dropSysResource() {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		panic(err)
	}
	sets[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&header, &sets[0]); err != nil {
		panic(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// tenant is whom volumes belong to: an ext4 lets root pass.
const tenant = 1000

// fill has the tenant append size bytes to a file of the volume, and returns
// what that failed with, and how large the file is.
func fill(t *testing.T, volume, name string, size int64) (syscall.Errno, int64) {
	t.Helper()
	return fillAs(t, writer, tenant, filepath.Join(volume, name), size)
}

func fillAs(t *testing.T, what string, uid uint32, path string, size int64) (syscall.Errno, int64) {
	t.Helper()
	err := helper(t, what, uid, path, strconv.FormatInt(size, 10)).Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	info, statErr := os.Stat(path)
	must(t, statErr)
	if exit == nil {
		return 0, info.Size()
	}
	return syscall.Errno(exit.ExitCode()), info.Size()
}

// disk is a filesystem that enforces, and what it says at a limit.
type disk struct {
	name string
	full syscall.Errno
}

var disks = []disk{{"ext4", syscall.EDQUOT}, {"xfs", syscall.ENOSPC}}

// machine returns a machine with an ext4 and an XFS, both able to enforce.
func machine(t *testing.T) *uml.Machine {
	return uml.New(t,
		uml.Disk{Name: "ext4", Make: []string{"mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota,lazy_itable_init=1"}},
		uml.Disk{Name: "xfs", Make: []string{"mkfs.xfs", "-q"}},
		uml.Disk{Name: "plain", Make: []string{"mkfs.ext4", "-q"}, Size: 64 << 20},
		uml.Disk{Name: "advised", Make: []string{"sh", "-c", "mkfs.ext4 -q $0 && tune2fs -O project -Q prjquota $0"}, Size: 64 << 20},
	)
}

// onEachDisk runs test, in the machine, on an ext4 and an XFS that enforce.
func onEachDisk(t *testing.T, m *uml.Machine, test func(t *testing.T, b *bench)) {
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			mount := m.Mount(t, d.name, d.name, "prjquota")
			base, err := os.MkdirTemp(mount, "pool-")
			must(t, err)
			must(t, os.Chmod(base, 0o755))
			test(t, newBench(t, base, d))
		})
	}
}

// bench is a pool with quotas.
type bench struct {
	t    *testing.T
	ctx  context.Context
	disk disk
	base string
	pool *directory.Pool
}

func newBench(t *testing.T, base string, d disk) *bench {
	t.Helper()
	b := &bench{t: t, ctx: t.Context(), disk: d, base: base, pool: poolAt(t, base, quota.New(quota.DefaultRange))}
	t.Cleanup(func() { _ = b.pool.Close() })
	return b
}

func poolAt(t *testing.T, base string, q directory.Quota) *directory.Pool {
	t.Helper()
	pool, err := openPool(base, q)
	must(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}

func openPool(base string, q directory.Quota) (*directory.Pool, error) {
	local, err := directory.NewLocal(base, directory.LocalOptions{})
	if err != nil {
		return nil, err
	}
	return directory.NewPool(local, directory.Options{Name: "default", Driver: "test", Quota: q, Log: logr.Discard()}), nil
}

const mib = 1 << 20

// volume is one of size MiB that belongs to the tenant.
func volume(name string, size int64) directory.Spec {
	return directory.Spec{
		Volume:    name,
		Claim:     types.NamespacedName{Namespace: "ns", Name: "claim-of-" + name},
		ClaimUID:  types.UID("uid-of-" + name),
		Class:     "class",
		SizeBytes: size * mib,
		Quota:     directory.QuotaRequired,
		Path:      name,
		OnDelete:  directory.OnDeleteDelete,
		Mode:      0o770,
		UID:       new(uint32(tenant)),
		GID:       new(uint32(tenant)),
	}
}

func expect(spec directory.Spec) directory.Expectation {
	return directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path, OnDelete: spec.OnDelete}
}

func (b *bench) path(rel string) string { return filepath.Join(b.base, rel) }

// create makes a volume, whose size must be enforced.
func (b *bench) create(spec directory.Spec) directory.Marker {
	b.t.Helper()
	m, err := b.pool.Create(b.ctx, spec)
	must(b.t, err)
	if state := m.QuotaState(); state != "enforced" {
		b.t.Fatalf("volume %s: %s", spec.Volume, state)
	}
	return m
}

// restart replaces the pool by one that knows nothing.
func (b *bench) restart() {
	b.t.Helper()
	must(b.t, b.pool.Close())
	b.pool = poolAt(b.t, b.base, quota.New(quota.DefaultRange))
}

func (b *bench) usage(name string) directory.VolumeUsage {
	b.t.Helper()
	u, err := b.pool.UsageOf(b.ctx, name)
	must(b.t, err)
	return u
}

// wantSize checks what df shows in the directory at path.
func (b *bench) wantSize(path string, size int64) {
	b.t.Helper()
	var st unix.Statfs_t
	must(b.t, unix.Statfs(path, &st))
	if got := int64(st.Blocks) * st.Bsize; got != size*mib {
		b.t.Errorf("df %s: %d bytes in all, want %d MiB", path, got, size)
	}
}

// root opens the base, for a look at the quotas themselves.
func (b *bench) root() directory.Dir {
	b.t.Helper()
	local, err := directory.NewLocal(b.base, directory.LocalOptions{})
	must(b.t, err)
	root, err := local.Root(b.ctx)
	must(b.t, err)
	b.t.Cleanup(func() { _ = root.Close() })
	return root
}

// limitOf returns what the filesystem knows of a project id.
func (b *bench) limitOf(id uint32) directory.QuotaUsage {
	b.t.Helper()
	u, err := quota.New(quota.DefaultRange).Usage(b.ctx, b.root(), id)
	must(b.t, err)
	return u
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// check asks whether limits are enforced below base.
func check(base string) error {
	local, err := directory.NewLocal(base, directory.LocalOptions{})
	if err != nil {
		return err
	}
	root, err := local.Root(context.Background())
	if err != nil {
		return err
	}
	defer root.Close()
	return quota.New(quota.DefaultRange).Check(context.Background(), root)
}
