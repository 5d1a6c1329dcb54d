package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/berth-storage/berth/provisioner/hostpath"
)

// The names of the runs.
const (
	runBerth        = "berth"
	runBerthCluster = "berth-cluster"
	runLibrary      = "library"
	runBare         = "bare"
)

var runNames = []string{runBerth, runBerthCluster, runLibrary, runBare}

// contender is something that makes claims Bound.
type contender struct {
	// provisioner is what its classes name.
	provisioner string
	// reclaims says whether it deletes the volumes of deleted claims.
	reclaims bool
	// command returns how to start it, for the claims of one class.
	command func(kubeconfig, pool, class string) []string
}

// newFleet returns the contenders by name. The library drives the
// same driver under the same name as Berth, one after the other.
func newFleet(berth string) (map[string]contender, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	child := func(kind string) func(kubeconfig, pool, class string) []string {
		return func(kubeconfig, pool, class string) []string {
			return []string{self, childCommand, kind, "-kubeconfig=" + kubeconfig, "-pool=" + pool, "-class=" + class}
		}
	}
	return map[string]contender{
		runBerth:        berthContender(berth),
		runBerthCluster: berthContender(berth, "--binding=cluster"),
		runLibrary:      {provisioner: hostpath.Name, reclaims: true, command: child(runLibrary)},
		runBare:         {provisioner: bareProvisioner, command: child(runBare)},
	}, nil
}

// berthContender is a berth binary, with further flags.
func berthContender(binary string, flags ...string) contender {
	return contender{provisioner: hostpath.Name, reclaims: true, command: func(kubeconfig, pool, _ string) []string {
		return append([]string{
			binary, "controller",
			"--kubeconfig=" + kubeconfig,
			"--node-name=" + nodeName,
			"--pool=default=" + pool,
			"--leader-elect=false",
			// Fixed ports may be taken.
			"--metrics-bind-address=127.0.0.1:0",
			"--health-probe-bind-address=127.0.0.1:0",
		}, flags...)
	}}
}

// process is a running contender.
type process struct {
	cmd     *exec.Cmd
	logPath string
	ended   chan struct{} // closed when the process has been waited for
	err     error         // what Wait returned; read it after ended
}

const stopTimeout = 30 * time.Second

func startProcess(argv []string, logPath string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640) //nolint:gosec // in the benchmark's own folder
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec,noctx // a contender, which is ended in order by stop
	cmd.Stdout, cmd.Stderr = log, log
	// A Ctrl-C is for this process, which ends its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &process{cmd: cmd, logPath: logPath, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// whileRunning returns a context that is canceled when the process ends.
func (p *process) whileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.ended:
			cancel(fmt.Errorf("the provisioner ended: %w", errors.Join(p.err, io.ErrUnexpectedEOF)))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// stop asks the process to end and waits until it has.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
	return fmt.Errorf("the provisioner did not end within %s and was killed%s", stopTimeout, p.tail())
}

const (
	tailLines = 40
	tailBytes = 64 << 10
)

// tail returns the end of the process's log, as the end of an error message.
func (p *process) tail() string {
	f, err := os.Open(p.logPath) //nolint:gosec // in the benchmark's own folder
	if err != nil {
		return "\n" + err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-tailBytes), io.SeekStart)
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return "\nthe end of the provisioner's log:\n\t" + strings.Join(lines, "\n\t")
}
