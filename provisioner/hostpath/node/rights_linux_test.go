package node_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/test/lib/oddfs"
)

// nobody is a user of the node who has nothing to do with the pool.
const nobody = 65534

// asNobody runs a program as nobody, and returns what it has said.
func asNobody(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// openToAll makes a directory that every user of the machine can get into, unlike
// those of testing.
func openToAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// A tenant who is root in its container opens its volume and puts a setuid program
// into it: CVE-2021-41091 and CVE-2021-41103 are of this kind.
func TestSetuidProgramOfATenantIsOutOfReachOfOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, prepare := range map[string]func(t *testing.T, base string){
		"new pool": func(*testing.T, string) {},
		"pool of an earlier version": func(t *testing.T, base string) {
			local, err := directory.NewLocal(base, directory.LocalOptions{})
			must(t, err)
			pool := directory.NewPool(local, directory.Options{Name: wire.DefaultPool, Driver: wire.PluginName, Log: logr.Discard()})
			_, err = pool.Create(t.Context(), directory.Spec{
				Volume: "pvc-0", ClaimUID: "uid-of-pvc-0", Path: "old", OnDelete: directory.OnDeleteDelete, SizeBytes: gi, Mode: 0o770,
			})
			must(t, err)
			must(t, pool.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			above := openToAll(t)
			base := filepath.Join(above, "pool")
			must(t, os.MkdirAll(filepath.Join(base, ".berth"), 0o700))
			must(t, os.Chmod(base, 0o755)) // as kubelet makes it
			if said, err := asNobody("/bin/ls", base); err != nil {
				t.Fatalf("nobody can get in anyway: %v: %s", err, said)
			}
			prepare(t, base)
			o := options(t, 1)
			o.Pools[wire.DefaultPool] = []string{base}
			_, err := newServer(t, o).CreateVolume(t.Context(), ask("pvc-1", gi, "path", "tenant"))
			must(t, err)

			tenant := filepath.Join(base, "tenant")
			must(t, os.Chmod(tenant, 0o755))
			program, err := os.ReadFile("/usr/bin/id")
			must(t, err)
			evil := filepath.Join(tenant, "evil")
			must(t, os.WriteFile(evil, program, 0o755))
			must(t, os.Chmod(evil, 0o755|os.ModeSetuid))
			if said, err := asNobody(evil); err == nil {
				t.Errorf("a user of the node could run it, and was %s", said)
			}

			// A pod of any user sees the volume where it is bound to.
			pod := filepath.Join(above, "pod")
			must(t, os.Mkdir(pod, 0o755))
			must(t, unix.Mount(tenant, pod, "", unix.MS_BIND, ""))
			defer func() { must(t, unix.Unmount(pod, unix.MNT_DETACH)) }()
			if said, err := asNobody("/bin/ls", pod); err != nil {
				t.Errorf("a pod's user can't get into its volume: %v: %s", err, said)
			}
		})
	}
}

func TestBaseThatIsLeftOpenIsShown(t *testing.T) {
	o := options(t, 1)
	base := o.Pools[wire.DefaultPool][0]
	must(t, os.Chmod(base, 0o755))
	must(t, os.Mkdir(filepath.Join(base, "somebodys"), 0o755))
	s := newServer(t, o)
	_, err := s.CreateVolume(t.Context(), ask("pvc-1", gi))
	must(t, err)
	wantGauge(t, s, "berth_pool_directory_open", 1)
	must(t, os.Chmod(base, 0o750))
	wantGauge(t, s, "berth_pool_directory_open", 0)
}

func TestVolumeWithOtherRightsThanAskedSaysSo(t *testing.T) {
	o := options(t, 1)
	o.Filesystem = func(real directory.Filesystem) directory.Filesystem {
		return &oddfs.FS{Filesystem: real, MkdirMode: 0o777, Chmod: oddfs.Ignored}
	}
	s := newServer(t, o)
	for range 2 {
		made, err := s.CreateVolume(t.Context(), ask("pvc-1", gi, "mode", "0750"))
		must(t, err)
		if got, want := made.GetVolume().GetVolumeContext()[wire.ContextRights], "mode 0777 instead of 0750 (wider)"; got != want {
			t.Errorf("rights %q, want %q", got, want)
		}
	}
	o = options(t, 1)
	made, err := newServer(t, o).CreateVolume(t.Context(), ask("pvc-1", gi, "mode", "0750"))
	must(t, err)
	if rights, told := made.GetVolume().GetVolumeContext()[wire.ContextRights]; told {
		t.Errorf("told %q of a directory that is as it should be", rights)
	}
}

// wantGauge checks the only series of a metric.
func wantGauge(t *testing.T, s *node.Server, name string, want float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(node.NewCollector(s, false))
	families, err := registry.Gather()
	must(t, err)
	for _, family := range families {
		if family.GetName() == name {
			if got := family.GetMetric()[0].GetGauge().GetValue(); got != want {
				t.Errorf("%s is %g, want %g", name, got, want)
			}
			return
		}
	}
	t.Errorf("there is no metric %s", name)
}
