package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/test/cluster/images"
	"github.com/berth-storage/berth/test/controlplane"
)

const (
	// roleEnv tells a process that Main has started what it is there for.
	roleEnv   = "BERTH_CLUSTER_ROLE"
	roleInner = "inner"
	roleNode  = "node"

	// dirEnv is the folder for what the clusters of the inner process keep, and
	// the name of their control group.
	dirEnv = "BERTH_CLUSTER_DIR"
)

// Main runs a program that starts clusters, in namespaces of its own: it builds
// the images of those names (see package images), starts the program again with
// the same arguments, calls run in that second process only, and returns what
// run returned, or another exit code when that process did not get so far. Nothing
// of the program that should happen once may come before it.
//
// After a failure the logs of the cluster are in bin/cluster-logs of the
// repository.
func Main(run func() int, imageNames ...string) int {
	code := 0
	var err error
	switch role := os.Getenv(roleEnv); role {
	case "":
		code, err = runInner(imageNames)
	case roleInner:
		if err = enterNamespaces(); err == nil {
			code = run()
		}
	case roleNode:
		err = runNode(os.Stdin)
	default:
		err = fmt.Errorf("%s=%q: only this package sets it", roleEnv, role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return code
}

// runInner starts this program again in its own namespaces, where no network is
// left to build anything with, and waits for it.
func runInner(imageNames []string) (code int, err error) {
	if err := Check(); err != nil {
		return 0, err
	}
	if err := images.Build(context.Background(), imageNames...); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "berth-cluster-")
	if err != nil {
		return 0, err
	}
	w, err := startWatchdog(dir)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	code, err = waitInner(dir)
	if code != 0 {
		err = errors.Join(err, keepLogs(dir))
	}
	return code, errors.Join(err, w.finish())
}

func waitInner(dir string) (int, error) {
	cmd := again(roleInner, dir)
	cmd.Args = os.Args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The signal comes when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start again in namespaces: %w", err)
	}
	defer forwardSignals(cmd.Process)()
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return 0, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// again returns the command that runs this program in another role.
func again(role, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // it ends with its namespaces
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	return cmd
}

// forwardSignals passes on what asks this process to end. Ctrl-C on a terminal
// reaches the other process by itself.
func forwardSignals(to *os.Process) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if s != syscall.SIGINT {
				_ = to.Signal(s)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// keepLogs copies the logs of the clusters in dir to where they outlive it.
func keepLogs(dir string) error {
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return err
	}
	kept := filepath.Join(root, "bin", "cluster-logs")
	if err := os.RemoveAll(kept); err != nil {
		return err
	}
	folders, err := filepath.Glob(filepath.Join(dir, "*", "logs"))
	if err != nil {
		return err
	}
	for _, logs := range folders {
		if err := os.CopyFS(filepath.Join(kept, filepath.Base(filepath.Dir(logs))), os.DirFS(logs)); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "cluster: logs are in", kept)
	return nil
}

// watchdog removes what namespaces do not hold, once everything in them has
// ended: the control groups and the folder. It is a shell that blocks reading a pipe
// whose other end only this process holds, so it works however this process ends.
type watchdog struct {
	cmd      *exec.Cmd
	lifeline interface{ Close() error }
}

// A group can be removed when its last process is gone, which takes a moment.
const watchdogScript = `
trap '' HUP INT TERM
read -r _
tries=0
while [ $tries -lt 200 ]; do
	left=
	for group in "$1/$2" "$1"/*/"$2"; do
		[ -d "$group" ] || continue
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
		[ -d "$group" ] && left=$group
	done
	[ -z "$left" ] && break
	tries=$((tries + 1))
	sleep 0.1
done
[ -z "$left" ] || echo "cluster: processes are left in control group $left" >&2
rm -rf -- "$3"
`

func startWatchdog(dir string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "cluster-watchdog", cgroupMount, groupName(dir), dir) //nolint:gosec,noctx // it outlives this process; the folders are arguments, not code
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, lifeline: lifeline}, nil
}

func (w *watchdog) finish() error {
	return errors.Join(w.lifeline.Close(), w.cmd.Wait())
}

// groupName is the control group of the clusters of a folder.
func groupName(dir string) string {
	return filepath.Base(dir)
}

// enterNamespaces makes the new namespaces of this process usable.
func enterNamespaces() error {
	if os.Getpid() != 1 {
		return errors.New("not in a process id namespace of its own, but process " + strconv.Itoa(os.Getpid()))
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountProc(); err != nil {
		return err
	}
	return setUpNetwork()
}

func mountProc() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}
