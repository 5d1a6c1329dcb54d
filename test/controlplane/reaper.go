package controlplane

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// reaper ends the components when the process that started them is gone without
// having called Stop: killed, crashed, or ended by a test's timeout.
//
// It is a shell that blocks reading a pipe whose other end only this process
// holds. However this process ends, the kernel closes the pipe, and the shell
// kills the process groups noted in the run folder. That works the same on Linux and
// macOS, and for the processes that envtest starts, whose attributes cannot be
// set from outside. (Linux' parent-death signal would be neither: it also fires when
// merely the thread that forked ends.)
type reaper struct {
	dir      string
	lifeline io.Closer
	cmd      *exec.Cmd
}

const reaperScript = `
trap '' HUP INT TERM
read -r _
for file in "$1"/*.pid; do
	[ -s "$file" ] && read -r pid <"$file" && kill -s KILL -- "-$pid"
done
[ -z "$2" ] || rm -rf -- "$2"
`

// startReaper watches over the components launched from dir. The folder
// temporary, unless it is "", is removed after an unexpected end.
func startReaper(dir, temporary string) (*reaper, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", reaperScript, "control-plane-reaper", dir, temporary) //nolint:gosec,noctx // it outlives this process; the folders are arguments, not code
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return &reaper{dir: dir, lifeline: lifeline, cmd: cmd}, nil
}

// launcher returns the path of a script that notes its process id for the reaper
// and becomes the given binary. The process must be started as the leader of a
// process group of its own.
func (r *reaper) launcher(binary string) (string, error) {
	name := filepath.Base(binary)
	path := filepath.Join(r.dir, name)
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --help ] || echo $$ >%s\nexec %s \"$@\"\n",
		shellQuote(r.pidFile(name)), shellQuote(binary))
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil { //nolint:gosec // a script has to be executable
		return "", err
	}
	return path, nil
}

func (r *reaper) pidFile(name string) string {
	return filepath.Join(r.dir, name+".pid")
}

// pid returns the process id of the component of this name, 0 when it was not
// started or has been forgotten.
func (r *reaper) pid(name string) int {
	text, err := os.ReadFile(r.pidFile(name))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// kill ends the component of this name at once.
func (r *reaper) kill(name string) {
	if pid := r.pid(name); pid > 0 {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

// forget tells that the component of this name has ended.
func (r *reaper) forget(name string) {
	_ = os.Remove(r.pidFile(name))
}

// stop ends the watch, and with it every component not forgotten yet.
func (r *reaper) stop() error {
	return errors.Join(r.lifeline.Close(), r.cmd.Wait())
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
