// Package agent_test runs the real berth agent in a network of its own, and
// watches what it does there.
package agent_test

import (
	"bufio"
	"context"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

const (
	// binaryVariable hands the binary to the test in its own network, and says that
	// it is there.
	binaryVariable = "BERTH_TEST_ISOLATED_BINARY"

	// apiHost is where the API server would be, by what the environment says.
	apiHost, apiPort = "127.0.0.99", "6443"
	agentAddress     = "127.0.0.1:9460"
	probeAddress     = "127.0.0.1:9461"
	metricsAddress   = "127.0.0.1:9462"
)

// TestAnAgentNeverTalksToTheAPIServer runs an agent with everything that leads a
// client to the API server: the environment of a pod, a service account's token,
// a kubeconfig. It goes through an agent's life, and then nobody may have
// connected to the API server, opened the token or the kubeconfig, or sent a
// packet anywhere but to those who called. A controller in the same place does,
// which shows that it would be seen.
func TestAnAgentNeverTalksToTheAPIServer(t *testing.T) {
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		isolate(t)
		return
	}
	n := enter(t)
	dir := t.TempDir()
	authority, err := tlstest.NewAuthority()
	n.ok(err)
	n.ok(authority.Write(dir, tlstest.Agent))
	pool := filepath.Join(dir, "pool")
	n.ok(os.MkdirAll(filepath.Join(pool, ".berth"), 0o700))
	before := n.opened()

	agent := n.start(binary, "agent", "--node-name=n1", "--pool=default="+pool, "--listen="+agentAddress,
		"--tls-cert-file="+filepath.Join(dir, agenttls.CertificateFile), "--tls-key-file="+filepath.Join(dir, agenttls.KeyFile),
		"--tls-ca-file="+filepath.Join(dir, agenttls.AuthoritiesFile),
		"--metrics-bind-address="+metricsAddress, "--health-probe-bind-address="+probeAddress)
	n.Eventually(func() error { return n.get(probeAddress, "/readyz") }).Should(gomega.Succeed())
	n.live(authority)
	n.ok(authority.Write(dir, tlstest.Agent)) // renewed while it runs
	n.live(authority)
	n.ok(n.get(metricsAddress, "/metrics"))
	n.ok(agent.Process.Signal(syscall.SIGTERM))
	n.ok(agent.Wait())

	if opened, ours := n.opened()-before, int(n.dials.Load()); opened != ours {
		t.Errorf("%d connections were opened, %d of them by this test", opened, ours)
	}
	if sent := n.counter("Udp", "OutDatagrams"); sent != 0 {
		t.Errorf("%d datagrams were sent", sent)
	}
	if calls := n.calls.Load(); calls != 0 {
		t.Errorf("the API server was called %d times", calls)
	}
	if reads := n.reads(); len(reads) > 0 {
		t.Errorf("what leads to the API server was looked at: %v", reads)
	}

	controller := n.start(binary, "controller", "--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=0")
	n.Eventually(n.calls.Load).ShouldNot(gomega.BeZero(), "a controller does not connect either: the test is blind")
	n.Eventually(n.reads).ShouldNot(gomega.BeEmpty(), "a controller reads nothing either: the test is blind")
	n.ok(controller.Process.Kill())
	_ = controller.Wait()
}

// isolate runs the test again, in namespaces of its own.
func isolate(t *testing.T) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "berth")
	if output, err := exec.Command("go", "build", "-o", binary, "github.com/berth-storage/berth").CombinedOutput(); err != nil {
		t.Fatalf("build berth: %v\n%s", err, output)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), binaryVariable+"="+binary)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	output, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	if err != nil {
		t.Errorf("in its own network: %v\n%s", err, output)
	}
}

// network is one without any way out, with a listener in the API server's place.
type network struct {
	*gomega.WithT
	t     *testing.T
	dials atomic.Int64
	calls atomic.Int64
	watch int // an inotify instance
	names map[int32]string
	seen  []string
	env   []string
}

// enter sets up the network, and everything that leads to an API server.
func enter(t *testing.T) *network {
	t.Helper()
	n := &network{WithT: gomega.NewWithT(t), t: t, names: map[int32]string{}}
	n.SetDefaultEventuallyTimeout(30 * time.Second)
	n.ok(bringUp("lo"))
	listener, err := net.Listen("tcp", net.JoinHostPort(apiHost, apiPort))
	n.ok(err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			n.calls.Add(1)
			_ = conn.Close()
		}
	}()
	// A pod's token is below /run, which is hidden here.
	n.ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	n.ok(unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	account := "/run/secrets/kubernetes.io/serviceaccount"
	n.ok(os.MkdirAll(account, 0o755))
	home := t.TempDir()
	n.watch, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	n.ok(err)
	authority, err := tlstest.NewAuthority()
	n.ok(err)
	for path, text := range map[string]string{
		filepath.Join(account, "token"):      "token",
		filepath.Join(account, "ca.crt"):     string(authority.PEM),
		filepath.Join(account, "namespace"):  "berth-system",
		filepath.Join(home, ".kube/config"):  "nonsense",
		filepath.Join(home, "my.kubeconfig"): "",
	} {
		n.ok(os.MkdirAll(filepath.Dir(path), 0o755))
		n.ok(os.WriteFile(path, []byte(text), 0o600))
		number, err := unix.InotifyAddWatch(n.watch, path, unix.IN_OPEN|unix.IN_ACCESS)
		n.ok(err)
		n.names[int32(number)] = path
	}
	if _, err := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/token"); err != nil {
		n.ok(os.MkdirAll("/run/var-run", 0o755))
		n.ok(unix.Mount("/run", "/var/run", "", unix.MS_BIND|unix.MS_REC, ""))
	}
	n.env = append(os.Environ(), "HOME="+home, "KUBERNETES_SERVICE_HOST="+apiHost, "KUBERNETES_SERVICE_PORT="+apiPort)
	return n
}

func (n *network) ok(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func bringUp(name string) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request)
}

// start starts berth, with the environment of a pod.
func (n *network) start(binary string, args ...string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = n.env
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.ok(cmd.Start())
	return cmd
}

// dial connects, and counts it.
func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.dials.Add(1)
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

func (n *network) get(address, path string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return n.dial(ctx, address) },
	}}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// live has the agent make a volume and delete it.
func (n *network) live(authority *tlstest.Authority) {
	n.t.Helper()
	source, err := authority.Source(authority, tlstest.Controller)
	n.ok(err)
	conn, err := grpc.NewClient("passthrough:///"+agentAddress, grpc.WithContextDialer(n.dial),
		grpc.WithTransportCredentials(agenttls.ClientCredentials(source)))
	n.ok(err)
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(n.t.Context(), wire.MetaNode, "n1")
	agent := csi.NewControllerClient(conn)
	made, err := agent.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "pvc-1", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	})
	n.ok(err)
	_, err = agent.ListVolumes(ctx, &csi.ListVolumesRequest{})
	n.ok(err)
	_, err = agent.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.GetVolume().GetVolumeId()})
	n.ok(err)
}

// opened returns how many TCP connections were asked for in this network, whether
// they came about or not.
func (n *network) opened() int { return n.counter("Tcp", "ActiveOpens") }

// counter reads one from /proc/net/snmp, where a line of names comes before each
// line of values.
func (n *network) counter(protocol, name string) int {
	n.t.Helper()
	file, err := os.Open("/proc/self/net/snmp")
	n.ok(err)
	defer file.Close()
	var names []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range fields {
			if names[i] == name {
				value, err := strconv.Atoi(fields[i])
				n.ok(err)
				return value
			}
		}
	}
	n.t.Fatalf("no counter %s of %s", name, protocol)
	return 0
}

// reads returns which of the watched files were opened or read so far.
func (n *network) reads() []string {
	n.t.Helper()
	buffer := make([]byte, 16*unix.SizeofInotifyEvent)
	for {
		got, err := unix.Read(n.watch, buffer)
		if errors.Is(err, unix.EAGAIN) {
			return n.seen
		}
		n.ok(err)
		for at := 0; at+unix.SizeofInotifyEvent <= got; at += unix.SizeofInotifyEvent {
			number := int32(buffer[at]) | int32(buffer[at+1])<<8 | int32(buffer[at+2])<<16 | int32(buffer[at+3])<<24
			n.seen = append(n.seen, fmt.Sprint(n.names[number]))
		}
	}
}
