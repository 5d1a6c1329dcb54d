package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// warden owns the demo's folder and what runs in it. It is a shell that blocks
// reading a pipe whose other end only this process holds: however this process
// ends, the shell kills the last process group it was told of and removes the
// folder.
type warden struct {
	cmd      *exec.Cmd
	lifeline io.WriteCloser
}

const wardenScript = `
trap '' HUP INT TERM
group=
while read -r line; do group=$line; done
[ -z "$group" ] || kill -s KILL -- "-$group"
rm -rf -- "$1"
`

func startWarden(dir string) (*warden, error) {
	cmd := exec.Command("/bin/sh", "-c", wardenScript, "demo-warden", dir) //nolint:gosec,noctx // it outlives this process; the folder is an argument, not code
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the warden: %w", err)
	}
	return &warden{cmd: cmd, lifeline: lifeline}, nil
}

// guard names the process group to kill should this process end; 0 for none.
func (w *warden) guard(group int) error {
	line := "\n"
	if group != 0 {
		line = fmt.Sprintf("%d\n", group)
	}
	_, err := io.WriteString(w.lifeline, line)
	return err
}

// close removes the folder.
func (w *warden) close() error {
	return errors.Join(w.lifeline.Close(), w.cmd.Wait())
}

// stopTimeout is how long the controller has to end when asked to.
const stopTimeout = 15 * time.Second

// controller is the running Berth.
type controller struct {
	cmd     *exec.Cmd
	warden  *warden
	logPath string
	ended   chan struct{} // closed when the process is gone
}

// startController runs a command in a process group of its own, so that Ctrl-C
// on the terminal reaches it through the demo alone, in order. Its output goes to
// logPath.
func startController(w *warden, logPath string, argv, env []string) (*controller, error) {
	log, err := os.Create(logPath) //nolint:gosec // in a folder of its own
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec,noctx // bin/berth, which is ended in order by stop
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &controller{cmd: cmd, warden: w, logPath: logPath, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(c.ended)
	}()
	return c, w.guard(cmd.Process.Pid)
}

// stop asks the controller to end, and waits until it has.
func (c *controller) stop() error {
	select {
	case <-c.ended:
		return c.warden.guard(0)
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end the controller: %w", err)
	}
	var err error
	select {
	case <-c.ended:
	case <-time.After(stopTimeout):
		_ = c.cmd.Process.Kill()
		<-c.ended
		err = fmt.Errorf("the controller did not end within %s and was killed", stopTimeout)
	}
	return errors.Join(err, c.warden.guard(0))
}

// logTail returns the last lines of the controller's log, without what makes
// them very long.
func (c *controller) logTail() string {
	const most, longest = 12, 600
	text, err := os.ReadFile(c.logPath)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-most):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), longest)]
	}
	return strings.Join(lines, "\n")
}

// shell runs the commands that the demo shows: as they are shown, in the
// repository's folder, with the variables that a reader is told to export.
type shell struct {
	dir    string   // the repository
	assets string   // the folder of kubectl
	env    []string // KUBECONFIG, POOL and the like
}

// run returns what a command prints. Its first word may be the name of a
// program in the folder of assets.
func (s *shell) run(ctx context.Context, line string) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line) //nolint:gosec // the lines are those of steps.go
	cmd.Dir = s.dir
	path := s.assets + string(filepath.ListSeparator) + os.Getenv("PATH")
	cmd.Env = append(append(os.Environ(), s.env...), "PATH="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
