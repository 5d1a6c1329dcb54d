// Package nfsserver runs real NFS servers for tests, the demonstration and the
// benchmark: NFS-Ganesha, from Debian's packages, on a loopback address and on
// ports of its own. It needs root, which Ganesha's VFS backend does.
//
// Servers, and the rpcbind that Ganesha insists on for version 3, end with the
// process that started them, however that ends.
package nfsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// RequireEnv names the environment variable that turns what Missing reports
// from a reason to skip a test into a failure.
const RequireEnv = "BERTH_REQUIRE_NFS"

// Squash says whose rights a client's users have.
type Squash string

// The values of Squash.
const (
	NoRootSquash Squash = "No_Root_Squash"
	RootSquash   Squash = "Root_Squash"
	AllSquash    Squash = "All_Squash"
)

// Export is a directory that a server exports.
type Export struct {
	// Path is the directory, absolute. It is what version 3 mounts.
	Path string
	// Pseudo is what version 4 mounts; the default is Path.
	Pseudo string
	// Squash is NoRootSquash by default.
	Squash Squash
	// AnonymousID is whom squashed users become, user and group.
	AnonymousID uint32
	// Secure refuses clients whose port is above 1023.
	Secure bool
	// ReadOnly refuses changes.
	ReadOnly bool
}

// Options configure a Server.
type Options struct {
	// Dir is a directory of the server's own, for its state and its log.
	Dir string
	// Exports are what it exports.
	Exports []Export
}

// Address is where servers listen.
const Address = "127.0.0.1"

// Server is a running server.
type Server struct {
	// Port is where it speaks NFS, MountPort where its mountd listens.
	Port, MountPort uint16

	dir string

	mu   sync.Mutex
	life *life
}

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
	pollInterval = 20 * time.Millisecond
)

// binaries are the programs needed, and the Debian packages that hold them.
var binaries = []struct{ file, pkg string }{
	{"/usr/bin/ganesha.nfsd", "nfs-ganesha"},
	{"/usr/lib/*/ganesha/libfsalvfs.so", "nfs-ganesha-vfs"},
	{"/usr/sbin/rpcbind", "rpcbind"},
}

// Missing says what a server needs that is not there, and how to get it; it is
// empty when nothing is missing.
func Missing() string {
	var packages []string
	for _, b := range binaries {
		if found, err := filepath.Glob(b.file); err != nil || len(found) == 0 {
			packages = append(packages, b.pkg)
		}
	}
	switch {
	case len(packages) > 0:
		return "an NFS server is missing: apt-get install --no-install-recommends " + strings.Join(packages, " ")
	case os.Geteuid() != 0:
		return "NFS-Ganesha needs root"
	}
	return ""
}

// starting serialises starts: two servers that register with rpcbind at the
// same time are in each other's way.
var starting sync.Mutex

// Start starts a server and returns when it answers.
func Start(ctx context.Context, o Options) (*Server, error) {
	if missing := Missing(); missing != "" {
		return nil, errors.New(missing)
	}
	s := &Server{dir: o.Dir}
	if err := os.MkdirAll(filepath.Join(o.Dir, "recovery"), 0o700); err != nil {
		return nil, fmt.Errorf("start an NFS server: %w", err)
	}
	starting.Lock()
	defer starting.Unlock()
	var err error
	if s.Port, s.MountPort, err = freePorts(ctx); err != nil {
		return nil, fmt.Errorf("start an NFS server: %w", err)
	}
	if err := os.WriteFile(s.file("conf"), []byte(s.configuration(o.Exports)), 0o600); err != nil {
		return nil, fmt.Errorf("start an NFS server: %w", err)
	}
	return s, s.start(ctx)
}

// configuration is ganesha.conf(8). Nothing is cached, since tests look at, and
// change, what is exported.
func (s *Server) configuration(exports []Export) string {
	var b strings.Builder
	fmt.Fprintf(&b, `NFS_CORE_PARAM {
	Protocols = 3, 4; Bind_addr = %s; NFS_Port = %d; MNT_Port = %d;
	Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = false;
}
MDCACHE { Dir_Chunk = 0; }
NFSV4 { Graceless = true; RecoveryBackend = fs; RecoveryRoot = %q; Only_Numeric_Owners = true; Lease_Lifetime = 20; }
`, Address, s.Port, s.MountPort, s.file("recovery"))
	for i, e := range exports {
		pseudo, squash, access := e.Pseudo, e.Squash, "RW"
		if pseudo == "" {
			pseudo = e.Path
		}
		if squash == "" {
			squash = NoRootSquash
		}
		if e.ReadOnly {
			access = "RO"
		}
		fmt.Fprintf(&b, `EXPORT {
	Export_Id = %d; Path = %q; Pseudo = %q; Protocols = 3, 4; Transports = TCP; SecType = sys;
	Access_Type = %s; Squash = %s; Anonymous_Uid = %d; Anonymous_Gid = %d; PrivilegedPort = %t;
	Attr_Expiration_Time = 0;
	FSAL { Name = VFS; }
}
`, i+1, e.Path, pseudo, access, squash, e.AnonymousID, e.AnonymousID, e.Secure)
	}
	return b.String()
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// start is called with starting held.
func (s *Server) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := startRPCBind(ctx); err != nil {
		return fmt.Errorf("start an NFS server: %w", err)
	}
	l, err := spawn("/usr/bin/ganesha.nfsd", "-F", "-f", s.file("conf"), "-L", s.file("log"), "-p", s.file("pid"))
	if err != nil {
		return fmt.Errorf("start an NFS server: %w", err)
	}
	s.mu.Lock()
	s.life = l
	s.mu.Unlock()
	for _, port := range []uint16{s.Port, s.MountPort} {
		if err := l.awaitPort(ctx, port); err != nil {
			l.end(syscall.SIGKILL)
			return fmt.Errorf("start an NFS server: %w%s", err, tail(s.file("log")))
		}
	}
	return nil
}

// Stop ends the server.
func (s *Server) Stop() { s.current().end(syscall.SIGTERM) }

// Kill ends the server as a crash does.
func (s *Server) Kill() { s.current().end(syscall.SIGKILL) }

// Restart starts the server again, after Stop or Kill, on the same ports.
func (s *Server) Restart(ctx context.Context) error {
	starting.Lock()
	defer starting.Unlock()
	return s.start(ctx)
}

// Pause makes the server fall silent, with its connections open. It returns
// once all of the server's threads have stopped.
func (s *Server) Pause() error {
	l := s.current()
	if err := l.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(stopTimeout); ; <-ticker.C {
		stopped, err := l.stopped()
		if err != nil || stopped {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not stop", l.name)
		}
	}
}

// Resume is the opposite of Pause.
func (s *Server) Resume() error { return s.current().signal(syscall.SIGCONT) }

func (s *Server) current() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// freePorts returns two ports that nobody listens on.
func freePorts(ctx context.Context) (one, other uint16, err error) {
	ports := make([]uint16, 2)
	for i := range ports {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", Address+":0")
		if err != nil {
			return 0, 0, fmt.Errorf("find a free port: %w", err)
		}
		defer listener.Close()
		ports[i] = uint16(listener.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
	}
	return ports[0], ports[1], nil
}

// tail is the end of a log, for an error message.
func tail(path string) string {
	text, err := os.ReadFile(path) //nolint:gosec // a log of this package
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\nthe end of its log:\n\t" + strings.Join(lines[max(0, len(lines)-15):], "\n\t")
}

// rpcbind is the one that this process started, if it did.
var rpcbind *life

const portRPCBind = 111

// startRPCBind starts rpcbind unless one runs, which may belong to another
// process that is about to end: then it is started when it is missed.
func startRPCBind(ctx context.Context) error {
	for !listens(ctx, portRPCBind) {
		var err error
		if rpcbind, err = spawn("/usr/sbin/rpcbind", "-f", "-w"); err != nil {
			return err
		}
		if err := rpcbind.awaitPort(ctx, portRPCBind); err != nil && !listens(ctx, portRPCBind) {
			return err
		}
	}
	return nil
}

func listens(ctx context.Context, port uint16) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(Address, strconv.Itoa(int(port))))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// life is the time from a start of a program to its end.
type life struct {
	name  string
	pid   int
	ended chan struct{}
}

// script runs a program that ends when standard input does, which happens
// however the process at its other end comes to an end.
//
// The lifeline moves to another number first: a shell gives its background
// commands an empty standard input.
const script = `exec 3<&0 </dev/null
"$@" 3<&- >/dev/null 2>&1 & child=$!
echo "$child"
exec >/dev/null
(read -r _ <&3; kill -KILL "$child" 2>/dev/null) &
wait "$child"`

// spawn starts a program.
func spawn(program string, args ...string) (*life, error) {
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "nfsserver", program}, args...)...) //nolint:gosec,noctx // it outlives the context of its start
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l := &life{name: filepath.Base(program), ended: make(chan struct{})}
	if _, err := fmt.Fscan(out, &l.pid); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", l.name, err), lifeline.Close(), cmd.Wait())
	}
	go func() {
		_, _ = cmd.Process.Wait()
		_ = lifeline.Close()
		close(l.ended)
	}()
	return l, nil
}

func (l *life) signal(signal syscall.Signal) error {
	if err := syscall.Kill(l.pid, signal); err != nil {
		return fmt.Errorf("signal %s: %w", l.name, err)
	}
	return nil
}

// stopped reports whether all threads are, since a signal reaches one after the
// other.
func (l *life) stopped() (bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", l.pid))
	if err != nil || len(files) == 0 {
		return false, errors.Join(fmt.Errorf("%s has no threads", l.name), err)
	}
	for _, file := range files {
		stat, err := os.ReadFile(file) //nolint:gosec // proc(5)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(after, "T") {
			return false, nil
		}
	}
	return true, nil
}

// end signals the program and waits until it is gone.
func (l *life) end(signal syscall.Signal) {
	_ = syscall.Kill(l.pid, signal)
	_ = syscall.Kill(l.pid, syscall.SIGCONT)
	select {
	case <-l.ended:
		return
	case <-time.After(stopTimeout):
	}
	_ = syscall.Kill(l.pid, syscall.SIGKILL)
	<-l.ended
}

// awaitPort returns once somebody listens on port.
func (l *life) awaitPort(ctx context.Context, port uint16) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !listens(ctx, port) {
		select {
		case <-l.ended:
			return fmt.Errorf("%s ended before it listened on port %d", l.name, port)
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on port %d: %w", l.name, port, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}
