package quota_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/quota"
	"github.com/berth-storage/berth/test/uml"
)

func TestOnRealDisks(t *testing.T) {
	m := machine(t)
	m.Run(t, "limits", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *bench){
			"a full volume leaves its neighbour alone": fullVolume,
			"a volume grows while it is in use":        growing,
			"usage is what the filesystem counts":      usage,
			"an id is free once the trash is empty":    idOfTrash,
			"before Linux 5.14":                        oldKernel,
			"two pools share no id":                    twoPools,
			"an id of somebody else is left alone":     foreignID,
			"what a tenant can do":                     tenantEscapes,
			"killed at any step":                       crashing,
		} {
			t.Run(name, func(t *testing.T) { onEachDisk(t, m, test) })
		}
	})
	m.Run(t, "filesystems that can't", func(t *testing.T) { unableDisks(t, m) })
	m.RunUntilPowerFails(t, "until the power fails", func(t *testing.T) {
		for _, d := range disks {
			b := newBench(t, powerBase(t, m, d), d)
			spec := volume("a", 4)
			b.create(spec)
			must(t, b.pool.Resize(b.ctx, "a", expect(spec), 8*mib))
			b.create(volume("b", 4))
		}
	})
	m.Run(t, "after the power failed", func(t *testing.T) {
		for _, d := range disks {
			b := newBench(t, powerBase(t, m, d), d)
			for name, limit := range map[string]int64{"a": 8, "b": 4} {
				if u := b.usage(name); !u.Enforced || u.LimitBytes != limit*mib {
					t.Errorf("%s: %+v, want a limit of %d MiB", d.name, u, limit)
				}
				b.wantSize(b.path(name), limit)
			}
			if errno, _ := fill(t, b.path("b"), "data", 6*mib); errno != d.full {
				t.Errorf("%s: writing 6 of 4 MiB: %v", d.name, errno)
			}
		}
	})
}

// powerBase is the base of a pool that is the same in each boot.
func powerBase(t *testing.T, m *uml.Machine, d disk) string {
	t.Helper()
	base := filepath.Join(m.Mount(t, d.name, d.name, "prjquota"), "power")
	must(t, os.MkdirAll(base, 0o755))
	return base
}

func fullVolume(t *testing.T, b *bench) {
	b.create(volume("a", 8))
	b.create(volume("b", 8))
	b.wantSize(b.path("a"), 8)

	errno, size := fill(t, b.path("a"), "data", 20*mib)
	if errno != b.disk.full || size > 8*mib || size < 7*mib {
		t.Errorf("writing 20 MiB: %v after %d bytes, want %v after about 8 MiB", errno, size, b.disk.full)
	}
	if errno, size := fill(t, b.path("b"), "data", 6*mib); errno != 0 || size != 6*mib {
		t.Errorf("the neighbour: %v after %d bytes", errno, size)
	}
	must(t, os.Remove(b.path("a/data")))
	if errno, _ := fill(t, b.path("a"), "data", 6*mib); errno != 0 {
		t.Errorf("after tidying up: %v", errno)
	}
}

func growing(t *testing.T, b *bench) {
	spec := volume("a", 4)
	b.create(spec)
	if errno, _ := fill(t, b.path("a"), "data", 6*mib); errno != b.disk.full {
		t.Fatalf("writing 6 of 4 MiB: %v", errno)
	}
	must(t, b.pool.Resize(b.ctx, "a", expect(spec), 8*mib))
	b.wantSize(b.path("a"), 8)
	if errno, _ := fill(t, b.path("a"), "more", 2*mib); errno != 0 {
		t.Errorf("after growing: %v", errno)
	}
	for range 2 { // by the marker, then by a pool that has read it
		must(t, b.pool.Resize(b.ctx, "a", expect(spec), 4*mib))
		b.wantSize(b.path("a"), 8)
		b.restart()
	}
}

func usage(t *testing.T, b *bench) {
	a := b.create(volume("a", 4))
	spec := volume("b", 4)
	spec.Quota = directory.QuotaNone
	_, err := b.pool.Create(b.ctx, spec)
	must(t, err)
	if errno, _ := fill(t, b.path("a"), "data", 2*mib); errno != 0 {
		t.Fatal(errno)
	}
	got := map[string]directory.VolumeUsage{}
	for u, err := range b.pool.Usage(b.ctx) {
		must(t, err)
		got[u.Volume] = u
	}
	used := got["a"].UsedBytes
	if used < 2*mib || used > 2*mib+64<<10 {
		t.Errorf("used = %d, want 2 MiB and a little", used)
	}
	want := map[string]directory.VolumeUsage{
		"a": {
			Volume: "a", Claim: types.NamespacedName{Namespace: "ns", Name: "claim-of-a"}, Class: "class", Enforced: true,
			QuotaUsage: directory.QuotaUsage{UsedBytes: used, LimitBytes: 4 * mib, Files: 2},
		},
		"b": {Volume: "b", Claim: types.NamespacedName{Namespace: "ns", Name: "claim-of-b"}, Class: "class", Reason: "its class says so"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	if a.Project == 0 {
		t.Error("the marker has no project id")
	}
}

func idOfTrash(t *testing.T, b *bench) {
	first := volume("a", 4)
	id := b.create(first).Project
	if errno, _ := fill(t, b.path("a"), "data", mib); errno != 0 {
		t.Fatal(errno)
	}
	must(t, b.pool.Delete(b.ctx, "a", expect(first)))
	if u := b.limitOf(id); u.Files != 2 || u.LimitBytes != 0 {
		t.Errorf("in the trash: %+v, want 2 files and no limit", u)
	}
	b.restart() // the filesystem remembers
	second := b.create(volume("b", 4)).Project
	if second == id {
		t.Errorf("the id %d was given away while files in the trash carry it", id)
	}
	must(t, b.pool.PurgeTrash(b.ctx))
	// XFS forgets a removed file a moment later.
	gomega.NewWithT(t).Eventually(func() directory.QuotaUsage { return b.limitOf(id) }, 10*time.Second).Should(gomega.BeZero())
	if third := b.create(volume("c", 4)).Project; third != id {
		t.Errorf("id = %d, want %d, which is free again", third, id)
	}
}

func oldKernel(t *testing.T, b *bench) {
	quota.WithOldKernel(func() {
		spec := volume("a", 4)
		b.create(spec)
		b.wantSize(b.path("a"), 4)
		must(t, b.pool.Resize(b.ctx, "a", expect(spec), 8*mib))
		b.wantSize(b.path("a"), 8)
		must(t, b.pool.Discard(b.ctx, "a"))
	})
}

// twoPools has two processes make volumes on one disk at the same time.
func twoPools(t *testing.T, b *bench) {
	ids := map[uint32]string{}
	var (
		mu    sync.Mutex
		group sync.WaitGroup
	)
	for i := range 4 {
		base, err := os.MkdirTemp(filepath.Dir(b.base), "two-")
		must(t, err)
		q := quota.New(quota.DefaultRange)
		pool := poolAt(t, base, q)
		for n := range 10 {
			name := string(rune('a'+i)) + string(rune('a'+n))
			group.Go(func() {
				m, err := pool.Create(context.WithoutCancel(t.Context()), volume(name, 4))
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				} else if other, taken := ids[m.Project]; taken {
					t.Errorf("%s and %s have id %d", name, other, m.Project)
				}
				ids[m.Project] = name
			})
		}
	}
	group.Wait()
}

// foreignID has a directory that Berth knows nothing of carry the id that is
// next.
func foreignID(t *testing.T, b *bench) {
	must(t, b.pool.Close())
	few := quota.Range{First: 500, Last: 502}
	pool := poolAt(t, b.base, quota.New(few))
	foreign := filepath.Join(filepath.Dir(b.base), "foreign")
	must(t, os.MkdirAll(foreign, 0o755))
	q := quota.New(few)
	dir := (&bench{t: t, ctx: b.ctx, base: foreign}).root()
	must(t, q.SetProject(b.ctx, dir, 500))
	must(t, q.Raise(b.ctx, dir, 502, 7*mib)) // a limit alone is enough
	defer func() {
		must(t, os.Remove(foreign))
		must(t, q.Lift(b.ctx, b.root(), 502))
	}()

	m, err := pool.Create(b.ctx, volume("a", 4))
	must(t, err)
	if m.Project != 501 {
		t.Errorf("project id %d, want the one that is free", m.Project)
	}
	_, err = pool.Create(b.ctx, volume("b", 4))
	if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), "every project id from 500-502 is in use") {
		t.Errorf("with no id left: %v", err)
	}
	must(t, pool.Discard(b.ctx, "a"))
}

// tenantEscapes shows what docs/quota.md says of root, and of tenants who mean
// to get around their limit.
func tenantEscapes(t *testing.T, b *bench) {
	m := b.create(volume("a", 4))
	path := b.path("a/data")
	want := syscall.Errno(0) // ext4 lets CAP_SYS_RESOURCE pass
	if b.disk.name == "xfs" {
		want = b.disk.full
	}
	if got := write(path, 6*mib); got != want {
		t.Errorf("root wrote 6 of 4 MiB: %v, want %v", got, want)
	}
	must(t, os.Remove(path))
	if got, _ := fillAs(t, podRoot, 0, path, 6*mib); got != b.disk.full {
		t.Errorf("root of a container wrote 6 of 4 MiB: %v, want %v", got, b.disk.full)
	}
	must(t, os.Remove(path))

	if errno, _ := fill(t, b.path("a"), "data", 3*mib); errno != 0 {
		t.Fatal(errno)
	}
	// The owner of a file may change its project id, but not from a user
	// namespace (hostUsers: false).
	inNamespace := helper(t, escaper, 0, path)
	inNamespace.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		Credential:  &syscall.Credential{NoSetGroups: true}, // root in there
		UidMappings: []syscall.SysProcIDMap{{HostID: tenant, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: tenant, Size: 1}},
	}
	if out, err := inNamespace.CombinedOutput(); err == nil || !strings.Contains(string(out), syscall.EINVAL.Error()) {
		t.Errorf("in a user namespace: %v: %s", err, out)
	}
	out, err := helper(t, escaper, tenant, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if used := b.limitOf(m.Project).UsedBytes; used > mib {
		t.Errorf("%d bytes still count against the volume", used)
	}
	// Of the volume's directory as well, but then it shows.
	if out, err := helper(t, escaper, tenant, b.path("a")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if u := b.usage("a"); u.Enforced || !strings.Contains(u.Reason, "has lost its project id") {
		t.Errorf("usage = %+v", u)
	}
}

// unableDisks are filesystems that don't enforce limits, and what is said then.
func unableDisks(t *testing.T, m *uml.Machine) {
	for name, c := range map[string]struct {
		disk, kind, options string
		want                string
	}{
		"ext4 without the mount option": {"ext4", "ext4", "", "counts what projects occupy and does not limit it: it was mounted without the option prjquota"},
		"ext4 without the feature":      {"plain", "ext4", "", "project quotas are off on this ext4: unmount it, run tune2fs -O project -Q prjquota on its device, and mount it with the option prjquota"},
		"XFS without the mount option":  {"xfs", "xfs", "", "project quotas are off on this XFS: unmount it, and mount it with the option prjquota"},
		"XFS that only counts":          {"xfs", "xfs", "pqnoenforce", "counts what projects occupy and does not limit it: it was mounted with the option pqnoenforce"},
		"tmpfs":                         {"", "tmpfs", "", "the filesystem is tmpfs, and only ext4 and XFS limit directories"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			if c.disk != "" {
				base = m.Mount(t, c.disk, c.kind, c.options)
			}
			base, err := os.MkdirTemp(base, "pool-")
			must(t, err)
			pool := poolAt(t, base, quota.New(quota.DefaultRange))
			_, err = pool.Create(t.Context(), volume("a", 4))
			if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("with quota required: %v", err)
			}
			spec := volume("b", 4)
			spec.Quota = directory.QuotaAuto
			created, err := pool.Create(t.Context(), spec)
			must(t, err)
			if state := created.QuotaState(); !strings.HasPrefix(state, "none: ") || !strings.Contains(state, c.want) {
				t.Errorf("with quota auto: %s", state)
			}
			must(t, pool.Close())
		})
	}
	t.Run("ext4 after what is advised", func(t *testing.T) {
		must(t, check(m.Mount(t, "advised", "ext4", "prjquota")))
	})
	for _, d := range disks {
		t.Run("a remount does not help "+d.name, func(t *testing.T) {
			base := m.Mount(t, d.name, d.name, "")
			must(t, unix.Mount("", base, "", unix.MS_REMOUNT, "prjquota"))
			if err := check(base); err == nil || !strings.Contains(err.Error(), "which a remount can't switch on") {
				t.Errorf("check = %v", err)
			}
		})
	}
	t.Run("a process without the capability", func(t *testing.T) {
		base := m.Mount(t, "xfs", "xfs", "prjquota")
		out, err := helper(t, prober, tenant, base).Output()
		must(t, err)
		if want := "the kernel lets nobody without the capability CAP_SYS_ADMIN set limits"; !strings.Contains(string(out), want) {
			t.Errorf("check says %q, want %q", out, want)
		}
	})
	t.Run("a base with a project id of its own", func(t *testing.T) {
		base, err := os.MkdirTemp(m.Mount(t, "xfs", "xfs", "prjquota"), "project-")
		must(t, err)
		dir := (&bench{t: t, ctx: t.Context(), base: base}).root()
		must(t, quota.New(quota.DefaultRange).SetProject(t.Context(), dir, 77))
		if err := check(base); err == nil || !strings.Contains(err.Error(), "has project id 77 itself") {
			t.Errorf("check = %v", err)
		}
	})
}
