package controlplane

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	pollInterval = 50 * time.Millisecond
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// Process is a component of the control plane that can be ended and started
// again at will. Its methods are safe for concurrent use.
type Process struct {
	name    string
	binary  string // the launcher
	args    []string
	certDir string
	logPath string
	reaper  *reaper
	// health is the path that answers 200, with healthy in its body, once the component works.
	health, healthy string
	// ready waits for what health does not tell; nil when there is nothing.
	ready func(context.Context) error
	note  func(format string, args ...any)

	mu   sync.Mutex // held while starting or ending
	life *life      // nil before the first start
}

// life is the time from a start of a process to its end.
type life struct {
	cmd   *exec.Cmd
	port  int
	ended chan struct{} // closed when the process has been waited for
	err   error         // what Wait returned; read it after ended
}

func (l *life) alive() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// Start starts the component and returns when it works: its health check passes
// and, for kube-controller-manager, the namespace default has its ServiceAccount.
// The error of a component that does not come up holds the end of its log. It is an
// error to start a component that runs.
func (p *Process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start(ctx)
}

// Stop asks the component to end and waits until it has. A component that
// is not running is no error; one that ignores the request is killed, and that is one.
func (p *Process) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end(syscall.SIGTERM)
}

// Kill ends the component at once, as a crash would, and waits until it is gone.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end(syscall.SIGKILL)
}

// Restart stops the component gracefully and starts it again.
func (p *Process) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.end(syscall.SIGTERM); err != nil {
		return err
	}
	return p.start(ctx)
}

// Running reports whether the component's process is alive.
func (p *Process) Running() bool {
	return p.PID() != 0
}

// PID returns the component's process id, 0 when it is not running.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.life.alive() {
		return 0
	}
	return p.life.cmd.Process.Pid
}

// endpoint returns the URL of the component's server, and the certificate that
// the component has made for it.
func (p *Process) endpoint() (url string, certificate []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.life.alive() {
		return "", nil, fmt.Errorf("%s is not running", p.name)
	}
	certificate, err = os.ReadFile(filepath.Join(p.certDir, p.name+".crt"))
	return fmt.Sprintf("https://127.0.0.1:%d/", p.life.port), certificate, err
}

// LogPath returns the file that holds the component's output, of all its lives.
func (p *Process) LogPath() string {
	return p.logPath
}

func (p *Process) start(ctx context.Context) error {
	if p.life.alive() {
		return fmt.Errorf("%s is already running", p.name)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	port, err := freePort(ctx, "127.0.0.1")
	if err != nil {
		return err
	}
	if err := p.spawn(port); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := p.awaitReady(ctx, port); err != nil {
		_ = p.end(syscall.SIGKILL)
		return fmt.Errorf("start %s: %w%s", p.name, err, LogTail(p.logPath))
	}
	p.note("%s ready after %.1fs", p.name, time.Since(began).Seconds())
	return nil
}

func (p *Process) spawn(port int) error {
	// A certificate of an earlier life would be taken for that of the new one.
	if err := os.RemoveAll(p.certDir); err != nil {
		return err
	}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := mergeFlags([]string{
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--cert-dir=" + p.certDir,
	}, p.args)
	cmd := exec.Command(p.binary, args...) //nolint:gosec,noctx // a component outlives the context of its start
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	l := &life{cmd: cmd, port: port, ended: make(chan struct{})}
	p.life = l
	go func() {
		l.err = cmd.Wait()
		p.reaper.forget(p.name)
		close(l.ended)
	}()
	return nil
}

// awaitReady returns nil once the component works, and an error when it ends
// before or ctx is done.
func (p *Process) awaitReady(ctx context.Context, port int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l := p.life
	go func() {
		select {
		case <-l.ended:
			cancel(fmt.Errorf("it ended before it was ready: %w", cmp.Or(l.err, errors.New("exit status 0"))))
		case <-ctx.Done():
		}
	}()
	err := poll(ctx, func() error { return p.checkHealth(ctx, port) })
	if err == nil && p.ready != nil {
		err = p.ready(ctx)
	}
	return err
}

// checkHealth asks the component whether it works. It trusts only the certificate that
// the component has made for itself, so that no other process that got hold of
// the port can answer in its place.
func (p *Process) checkHealth(ctx context.Context, port int) error {
	pem, err := os.ReadFile(filepath.Join(p.certDir, p.name+".crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}}
	url := fmt.Sprintf("https://127.0.0.1:%d%s", port, p.health)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), p.healthy) {
		return fmt.Errorf("GET %s: %s: %s", p.health, resp.Status, body)
	}
	return nil
}

// end signals the component's process group and waits until the process is gone.
func (p *Process) end(sig syscall.Signal) error {
	if !p.life.alive() {
		return nil
	}
	group := -p.life.cmd.Process.Pid
	if err := syscall.Kill(group, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	select {
	case <-p.life.ended:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-p.life.ended
	return fmt.Errorf("%s did not end within %s and was killed%s", p.name, stopTimeout, LogTail(p.logPath))
}

// poll calls check until it returns nil. When ctx is done first, the error tells
// why and what check said last.
func poll(ctx context.Context, check func() error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last check: %w)", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// freePort returns a TCP port nobody listens on at address.
func freePort(ctx context.Context, address string) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

const (
	tailLines = 15
	tailBytes = 16 << 10
)

// LogTail returns the last lines of a log, with a heading, as the end of an
// error message. It is "" when there are none.
func LogTail(path string) string {
	f, err := os.Open(path) //nolint:gosec // a log of this package
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-tailBytes), io.SeekStart)
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	lines = lines[max(0, len(lines)-tailLines):]
	return fmt.Sprintf("\nthe end of %s:\n\t%s", path, strings.Join(lines, "\n\t"))
}
