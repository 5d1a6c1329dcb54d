package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/test/cluster/images"
	"github.com/berth-storage/berth/test/controlplane"
)

const (
	nodeStartTimeout = 2 * time.Minute
	pollInterval     = 100 * time.Millisecond
)

// Node is a machine of the cluster: a kubelet and containerd. Its methods are safe
// for concurrent use.
type Node struct {
	name    string
	spec    nodeSpec
	cluster *Cluster

	mu    sync.Mutex // held while starting or ending
	cmd   *exec.Cmd  // the node's first process; nil when off
	ended chan struct{}
	err   error // what Wait returned; read it after ended
}

// newNode prepares a node's folders and its way to the API server.
func (c *Cluster) newNode(index int) (*Node, error) {
	name := "node" + strconv.Itoa(index)
	kubelet, err := kubelet()
	if err != nil {
		return nil, err
	}
	cni, err := cniFolder()
	if err != nil {
		return nil, err
	}
	n := &Node{name: name, cluster: c, spec: nodeSpec{
		Name:       name,
		Index:      index,
		Nodes:      c.options.Nodes,
		Dir:        filepath.Join(c.dir, name),
		Cgroup:     groupName(c.dir) + "/" + name,
		Kubelet:    kubelet,
		CNI:        cni,
		Kubeconfig: c.kubeconfig(name),
	}}
	if n.spec.Images, err = images.Find(c.options.Images...); err != nil {
		return nil, err
	}
	if err := n.spec.makeFolders(); err != nil {
		return nil, err
	}
	return n, c.plane.WriteKubeconfig(n.spec.Kubeconfig, "system:node:"+name, "system:nodes")
}

// Name returns the name of the Node object.
func (n *Node) Name() string { return n.name }

// Address returns the node's IP address.
func (n *Node) Address() string { return nodeAddress(n.spec.Index) }

// Start boots the node and returns when its kubelet reports it Ready. The error
// holds the end of the log of what failed. It is an error to start a node that is on.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("%s is already on", n.name)
	}
	ctx, cancel := context.WithTimeout(ctx, nodeStartTimeout)
	defer cancel()
	began := time.Now()
	if err := makeCgroup(n.spec.Cgroup); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	if err := n.boot(); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", n.name, err), n.powerOff())
	}
	if err := n.awaitReady(ctx, began.Truncate(time.Second)); err != nil {
		err = fmt.Errorf("start %s: %w%s%s%s", n.name, err,
			controlplane.LogTail(n.spec.log("init")), controlplane.LogTail(n.spec.log("containerd")), controlplane.LogTail(n.spec.log("kubelet")))
		return errors.Join(err, n.powerOff())
	}
	n.cluster.note("%s ready after %.1fs", n.name, time.Since(began).Seconds())
	return nil
}

// boot starts the node's first process, gives it a network and then its
// instructions.
func (n *Node) boot() error {
	log, err := os.OpenFile(n.spec.log("init"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := again(roleNode, n.cluster.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
		Setpgid:    true,
	}
	instructions, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.ended = cmd, make(chan struct{})
	go func() {
		n.err = cmd.Wait()
		close(n.ended)
	}()
	if err := connect(n.spec.Index, cmd.Process.Pid); err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(instructions).Encode(n.spec), instructions.Close())
}

// awaitReady waits for a report of the kubelet that it is Ready, no older than
// since.
func (n *Node) awaitReady(ctx context.Context, since time.Time) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := n.ended
	go func() {
		select {
		case <-ended:
			cancel(fmt.Errorf("it ended before it was ready: %w", cmp.Or(n.err, errors.New("exit status 0"))))
		case <-ctx.Done():
		}
	}()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		node, err := n.cluster.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err == nil && isReady(node, since) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its kubelet has not reported Ready: %w", context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

func isReady(node *corev1.Node, since time.Time) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(since)
		}
	}
	return false
}

// PowerOff ends the node at once with everything that runs on it, as pulling the
// plug would. The Node object stays. A node that is off is no error.
func (n *Node) PowerOff() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.powerOff()
}

func (n *Node) powerOff() error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", n.name, err)
	}
	<-n.ended
	n.cmd = nil
	// A machine boots without any. The next kubelet would look for what ran in
	// those, at length, before it registers its Node.
	return removeCgroup(n.spec.Cgroup)
}

// On reports whether the node was started and not ended since.
func (n *Node) On() bool { return n.pid() != 0 }

// Command returns a command that runs in the node's namespaces.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := []string{"--target", strconv.Itoa(n.pid()), "--mount", "--net", "--uts", "--pid", "--"}
	return exec.CommandContext(ctx, "nsenter", append(args, argv...)...) //nolint:gosec // the caller names the command
}

// Path returns where a file of the node is for this process, while the node is on.
func (n *Node) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.pid()), "root", path)
}

// pid returns the id of the node's first process, 0 when it is off.
func (n *Node) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}
