//nolint:gosec // it runs tests, on files and commands of its own
package uml

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// initEnv tells a test binary that it is the first process of a machine.
const initEnv = "BERTH_UML_INIT"

// The first process of a machine never gets as far as the tests: it starts
// itself once more for them. It has to be done here since a test's package need
// not have a TestMain.
func init() {
	if os.Getpid() != 1 || os.Getenv(initEnv) == "" {
		return
	}
	status, powerFails, err := work()
	if err != nil {
		fmt.Println("berth: ", err) // on the console
	} else {
		_ = os.WriteFile("/"+statusFile, []byte(strconv.Itoa(status)), 0o644)
	}
	if !powerFails {
		unix.Sync()
	}
	fmt.Println("berth: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	select {}
}

// work does the machine's job, and returns the exit status of the test.
func work() (status int, powerFails bool, _ error) {
	for _, mount := range []struct{ source, dir, kind, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"tmpfs", "/tmp", "tmpfs", ""},
		{"tmpfs", "/mnt", "tmpfs", ""},
	} {
		// EBUSY: the kernel has mounted it already.
		if err := unix.Mount(mount.source, mount.dir, mount.kind, 0, mount.data); err != nil && err != unix.EBUSY {
			return 0, false, fmt.Errorf("mount %s: %w", mount.dir, err)
		}
	}
	if err := unix.Mount("none", "/modules", "hostfs", unix.MS_RDONLY, modulesPath); err != nil {
		return 0, false, fmt.Errorf("mount the modules: %w", err)
	}
	if err := loadModules("quota_v2"); err != nil { // of ext4
		return 0, false, err
	}
	if err := loopbackUp(); err != nil {
		return 0, false, err
	}
	data, err := os.ReadFile("/" + jobFile)
	if err != nil {
		return 0, false, err
	}
	var j job
	if err := json.Unmarshal(data, &j); err != nil {
		return 0, false, err
	}
	status, err = runTest(j)
	return status, j.PowerFails, err
}

func runTest(j job) (status int, _ error) {
	output, err := os.Create("/" + outputFile)
	if err != nil {
		return 0, err
	}
	defer output.Close()
	cmd := exec.Command("/"+binaryFile, j.Args...) //nolint:noctx // the machine is there for nothing else
	cmd.Stdout, cmd.Stderr, cmd.Dir = output, output, "/tmp"
	// No registers that the kernel may not know of: see xstate/ptrace.c.
	cmd.Env = append(slices.Clone(j.Env), "PATH=/", "HOME=/tmp", "TMPDIR=/tmp", "GODEBUG=cpu.all=off", phaseEnv+"="+j.Phase)
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// loopbackUp switches on the only network there is.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("switch on the loopback network: %w", err)
	}
	return nil
}

// loadModules loads what the kernel does not have built in.
func loadModules(names ...string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	dir := filepath.Join("/modules", unix.ByteSliceToString(uts.Release[:]))
	data, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		// file: files it depends on, the first of which depends on the others
		file, needs, _ := strings.Cut(line, ":")
		if !slices.Contains(names, strings.TrimSuffix(filepath.Base(file), ".ko")) {
			continue
		}
		files := append([]string{file}, strings.Fields(needs)...)
		slices.Reverse(files)
		for _, file := range files {
			if err := loadModule(filepath.Join(dir, file)); err != nil {
				return err
			}
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// Load loads modules of the kernel, in the machine.
func (m *Machine) Load(t *testing.T, names ...string) {
	t.Helper()
	if err := loadModules(names...); err != nil {
		t.Fatal(err)
	}
}

// Device returns the device of a disk, in the machine.
func (m *Machine) Device(disk string) string {
	i := slices.IndexFunc(m.disks, func(d Disk) bool { return d.Name == disk })
	return fmt.Sprintf("/dev/ubd%c", 'a'+i)
}

// Mount mounts a disk, in the machine, until t ends, and returns where.
func (m *Machine) Mount(t *testing.T, disk, kind, options string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/mnt", disk+"-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(m.Device(disk), dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s as %s with %q: %v", disk, kind, options, err)
	}
	if !m.powerFails { // to unmount is to make durable
		t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	}
	return dir
}
