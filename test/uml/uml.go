// Package uml runs tests on a Linux kernel of their own: user-mode Linux, an
// ordinary process, from Debian's package user-mode-linux. It is for what the
// machine's kernel may lack or a test must not do to it: project quotas, power
// failures.
//
// A test says which disks it needs and what to do there:
//
//	func TestOnDisk(t *testing.T) {
//		m := uml.New(t, uml.Disk{Name: "xfs", Make: []string{"mkfs.xfs", "-q"}})
//		m.Run(t, "enforced", func(t *testing.T) {
//			base := m.Mount(t, "xfs", "xfs", "prjquota")
//			…
//		})
//	}
//
// Run builds the package's test binary, without cgo and with the tag
// crashpoints, boots a kernel whose first process is that binary, and has it
// run the very same test there. In there, Run calls the function, as root of
// the small machine. It sees nothing of the host but the test binary and, for
// reading, the kernel's modules.
package uml

import (
	"cmp"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// RequireEnv names the environment variable that turns what Missing reports
// from a reason to skip a test into a failure.
const RequireEnv = "BERTH_REQUIRE_UML"

// phaseEnv tells a test binary that it runs in a machine, and which call of Run
// it is there for.
const phaseEnv = "BERTH_UML_PHASE"

// defaultTimeout bounds how long one call of Run may take.
const defaultTimeout = 5 * time.Minute

const (
	kernel      = "/usr/bin/linux.uml"
	modulesPath = "/usr/lib/uml/modules"
)

// Disk is a disk of a Machine.
type Disk struct {
	// Name is what the test calls it.
	Name string
	// Make is the command that makes a filesystem on it, without the name of
	// the device.
	Make []string
	// Size is how large it is, in bytes; the default is 512 MiB, of which only
	// what is written takes up space.
	Size int64
}

const defaultDiskSize = 512 << 20

// Machine is a small machine, which keeps its disks from one Run to the next.
type Machine struct {
	// Timeout bounds how long one call of Run may take; 0 means five minutes.
	Timeout time.Duration
	// Env names the environment variables that the test sees in the machine too.
	Env []string

	disks []Disk
	dir   string // on the host, or "" in the machine
	// wrapper is a library that the kernel needs here, or "".
	wrapper string
	// powerFails says, in the machine, that it is not to be shut down.
	powerFails bool
}

// Missing says what a machine needs that is not there, and how to get it; it is
// empty when nothing is missing.
func Missing() string {
	var packages []string
	for _, need := range []struct{ file, pkg string }{
		{kernel, "user-mode-linux"},
		{"/sbin/mkfs.ext4", "e2fsprogs"},
		{"/sbin/mkfs.xfs", "xfsprogs"},
	} {
		if _, err := os.Stat(need.file); err != nil {
			packages = append(packages, need.pkg)
		}
	}
	if len(packages) == 0 {
		return ""
	}
	return "a kernel of the test's own is missing: apt-get install --no-install-recommends " + strings.Join(packages, " ")
}

// New returns a machine with disks, newly made. Where one can't be had the test
// is skipped with the reason, or fails when RequireEnv is set.
func New(t *testing.T, disks ...Disk) *Machine {
	t.Helper()
	m := &Machine{disks: disks}
	if inside() {
		return m
	}
	if missing := Missing(); missing != "" {
		if os.Getenv(RequireEnv) != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	if err := m.build(t); err != nil {
		t.Fatal(err)
	}
	return m
}

// Run boots the machine, calls f in it as the subtest called phase, and shuts it
// down.
func (m *Machine) Run(t *testing.T, phase string, f func(t *testing.T)) {
	t.Helper()
	m.run(t, phase, f, false)
}

// RunUntilPowerFails is Run without the shutting down: what was not made durable
// is lost.
func (m *Machine) RunUntilPowerFails(t *testing.T, phase string, f func(t *testing.T)) {
	t.Helper()
	m.run(t, phase, f, true)
}

func (m *Machine) run(t *testing.T, phase string, f func(t *testing.T), powerFails bool) {
	t.Helper()
	if inside() {
		if os.Getenv(phaseEnv) == phase {
			m.powerFails = powerFails
			t.Run(phase, f)
		}
		return
	}
	t.Run(phase, func(t *testing.T) {
		m.boot(t, job{
			Phase:      phase,
			Args:       []string{"-test.v", "-test.timeout=" + m.timeout().String(), "-test.run=" + exactly(t.Name())},
			Env:        m.env(),
			PowerFails: powerFails,
		})
	})
}

func (m *Machine) timeout() time.Duration { return cmp.Or(m.Timeout, defaultTimeout) }

func (m *Machine) env() (env []string) {
	for _, name := range m.Env {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// inside reports whether this process runs in a machine.
func inside() bool { return os.Getenv(phaseEnv) != "" }

// exactly returns the pattern for -test.run that matches one test, and of its
// subtests those that this process was asked for.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	if asked := strings.Split(flag.Lookup("test.run").Value.String(), "/"); len(asked) > len(parts) {
		parts = append(parts, asked[len(parts):]...)
	}
	return strings.Join(parts, "/")
}

// The files by which the host and the machine talk: the machine's root is a
// directory of the host.
const (
	binaryFile = "test"
	jobFile    = "job.json"
	outputFile = "output"
	statusFile = "status"
)

// job is what a machine does once it is up.
type job struct {
	Phase      string
	Args       []string
	Env        []string
	PowerFails bool
}

func (m *Machine) root() string { return filepath.Join(m.dir, "root") }

func (m *Machine) image(disk Disk) string { return filepath.Join(m.dir, disk.Name+".img") }
