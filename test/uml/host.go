//nolint:gosec // it runs tests, on files and commands of its own
package uml

import (
	"bytes"
	"context"
	_ "embed" // of xstate/ptrace.c
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// mountPoints are the directories of the machine's root.
var mountPoints = []string{"proc", "sys", "dev", "tmp", "mnt", "modules"}

// build makes the machine's root and its disks.
func (m *Machine) build(t *testing.T) (err error) {
	t.Helper()
	// A short path without anything that the kernel's command line would take
	// for punctuation, unlike t.TempDir.
	if m.dir, err = os.MkdirTemp("", "berth-uml-"); err != nil {
		return err
	}
	t.Cleanup(func() { _ = os.RemoveAll(m.dir) })
	for _, dir := range mountPoints {
		if err := os.MkdirAll(filepath.Join(m.root(), dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(m.root(), 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "crashpoints", "-o", filepath.Join(m.root(), binaryFile), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the test for its own machine: %w\n%s", err, out)
	}
	for _, disk := range m.disks {
		if err := m.makeDisk(t.Context(), disk); err != nil {
			return fmt.Errorf("make disk %s: %w", disk.Name, err)
		}
	}
	return nil
}

func (m *Machine) makeDisk(ctx context.Context, disk Disk) error {
	image, err := os.Create(m.image(disk))
	if err != nil {
		return err
	}
	size := disk.Size
	if size == 0 {
		size = defaultDiskSize
	}
	if err := errors.Join(image.Truncate(size), image.Close()); err != nil || len(disk.Make) == 0 {
		return err
	}
	mkfs := exec.CommandContext(ctx, disk.Make[0], append(slices.Clone(disk.Make[1:]), image.Name())...)
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// boot runs the machine until it has done its job, and reports as t what the
// test in there has said.
func (m *Machine) boot(t *testing.T, j job) {
	t.Helper()
	data, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.root(), jobFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{outputFile, statusFile} {
		if err := os.RemoveAll(filepath.Join(m.root(), name)); err != nil {
			t.Fatal(err)
		}
	}
	console, err := m.runKernel(t)
	if strings.Contains(console, unknownRegisters) && m.wrapper == "" {
		if m.wrapper, err = buildWrapper(t.Context(), m.dir); err != nil {
			t.Fatal(err)
		}
		console, err = m.runKernel(t)
	}
	output, _ := os.ReadFile(filepath.Join(m.root(), outputFile))
	status, statusErr := os.ReadFile(filepath.Join(m.root(), statusFile))
	switch {
	case statusErr != nil:
		t.Fatalf("the machine did not finish: %v\n%s\nits console:\n%s", err, output, console)
	case string(status) != "0":
		t.Fatalf("in the machine, exit status %s:\n%s\nits console:\n%s", status, output, console)
	case !bytes.Contains(output, []byte("--- PASS: "+t.Name()+" ")):
		t.Fatalf("in the machine the test did not run:\n%s", output)
	default:
		t.Logf("in the machine:\n%s", output)
	}
}

// runKernel returns what the kernel has written to its console.
func (m *Machine) runKernel(t *testing.T) (console string, _ error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), m.timeout())
	defer cancel()
	args := []string{
		"mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=" + m.root(), "rw", "init=/" + binaryFile,
		"con=null", "con0=null,fd:1", "quiet", "panic=-1", "uml_dir=" + m.dir + "/", initEnv + "=1",
	}
	for i, disk := range m.disks {
		args = append(args, fmt.Sprintf("ubd%d=%s", i, m.image(disk)))
	}
	var out strings.Builder
	cmd := exec.CommandContext(ctx, kernel, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "TMPDIR="+memory())
	if m.wrapper != "" {
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+m.wrapper)
	}
	// The machine's processes are processes of the host: they end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("it took longer than %s: %w", m.timeout(), ctx.Err())
	}
	return out.String(), err
}

// unknownRegisters is how a kernel ends, before it does anything, on a processor
// that has registers it does not know of.
const unknownRegisters = "ptrace set fp regs failed"

//go:embed xstate/ptrace.c
var wrapperSource string

// buildWrapper builds the library that helps such a kernel.
func buildWrapper(ctx context.Context, dir string) (library string, _ error) {
	library = filepath.Join(dir, "xstate.so")
	build := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-shared", "-fPIC", "-x", "c", "-o", library, "-")
	build.Stdin = strings.NewReader(wrapperSource)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("user-mode Linux needs help with this processor's registers; build it: %w\n%s", err, out)
	}
	return library, nil
}

// memory is where the machine's memory is a file: in memory, if it can.
func memory() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return os.TempDir()
}
