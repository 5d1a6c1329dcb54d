package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// nodeSpec is what a node's first process is told.
type nodeSpec struct {
	Name         string
	Index, Nodes int
	Dir          string // the node's disk, its configuration and its logs
	Cgroup       string
	Kubelet, CNI string // where the kubelet is, and the network plugins
	Kubeconfig   string
	Images       []string
}

// disk maps folders of the node to what they are outside.
func (s nodeSpec) disk() map[string]string {
	return map[string]string{
		"/mnt":     filepath.Join(s.Dir, "mnt"),
		"/var/lib": filepath.Join(s.Dir, "lib"),
		"/var/log": filepath.Join(s.Dir, "logs"), // with those of containers, in pods
	}
}

func (s nodeSpec) makeFolders() error {
	folders := []string{filepath.Join(s.Dir, "conf", "cni")}
	for _, dir := range s.disk() {
		folders = append(folders, dir)
	}
	for _, dir := range folders {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // pods of any user pass through
			return err
		}
	}
	return s.writeConfiguration()
}

func (s nodeSpec) conf(name string) string { return filepath.Join(s.Dir, "conf", name) }

func (s nodeSpec) log(name string) string { return filepath.Join(s.Dir, "logs", name+".log") }

// runNode is the first process of a node: it sets the node up, starts containerd
// and the kubelet, and ends when one of them does. The kernel then ends all others.
func runNode(instructions io.Reader) error {
	var s nodeSpec
	if err := json.NewDecoder(instructions).Decode(&s); err != nil {
		return fmt.Errorf("read instructions: %w", err)
	}
	if err := s.setUp(); err != nil {
		return err
	}
	containerd, err := s.spawn("containerd", "containerd", "--config", s.conf("containerd.toml"), "--log-level", "warn")
	if err != nil {
		return err
	}
	if err := awaitSocket(containerdSocket, 30*time.Second); err != nil {
		return err
	}
	for _, image := range s.Images {
		if err := importImage(image); err != nil {
			return err
		}
	}
	kubelet, err := s.spawn("kubelet", s.Kubelet,
		"--config="+s.conf("kubelet.yaml"),
		"--kubeconfig="+s.Kubeconfig,
		"--node-ip="+nodeAddress(s.Index),
		fmt.Sprintf("--node-labels=topology.kubernetes.io/zone=zone%d", s.Index))
	if err != nil {
		return err
	}
	return reap(map[int]string{containerd: "containerd", kubelet: "kubelet"})
}

// setUp makes the mounts and the network of a node.
func (s nodeSpec) setUp() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountProc(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for to, from := range s.disk() {
		if err := bind(from, to); err != nil {
			return err
		}
	}
	if err := hideSysctls(); err != nil {
		return err
	}
	// Mounts that pods make have to reach the node where they ask for it.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return setUpNodeNetwork(s.Index, s.Nodes)
}

// hideSysctls lets the kubelet find the settings it wants, which are the whole
// machine's, so that it does not make them.
func hideSysctls() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1",
		"kernel/panic_on_oops": "1",
		"kernel/panic":         "10",
	} {
		file := filepath.Join("/run/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return err
		}
		if err := bind(file, filepath.Join("/proc/sys", name)); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// spawn starts a program with its output in a log and returns its process id.
// Whoever reaps waits for it.
func (s nodeSpec) spawn(name, program string, args ...string) (int, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(s.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	process, err := os.StartProcess(path, append([]string{program}, args...), &os.ProcAttr{
		Env:   append(os.Environ(), roleEnv+"="),
		Files: []*os.File{nil, log, log},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	return process.Pid, nil
}

func awaitSocket(path string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody listens within %s: %w", patience, err)
		case <-ticker.C:
		}
	}
}

func importImage(path string) error {
	output, err := exec.Command("ctr", "--namespace=k8s.io", "images", "import", path).CombinedOutput() //nolint:gosec,noctx // the node ends with it
	if err != nil {
		return fmt.Errorf("import image %s: %w\n%s", path, err, output)
	}
	return nil
}

// reap waits for all processes of the node, those that their parents have left
// behind too, and returns when one of those named has ended.
func reap(named map[int]string) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for processes: %w", err)
		}
		if name, ok := named[pid]; ok {
			return fmt.Errorf("%s has ended: exit status %d, signal %d", name, status.ExitStatus(), status.Signal())
		}
	}
}
