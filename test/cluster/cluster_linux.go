package cluster

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
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berth-storage/berth/test/controlplane"
)

// Options say which cluster to start. The zero value is a working one.
type Options struct {
	// Nodes is how many nodes there are, 2 when it is 0. They are named node1,
	// node2, and so on.
	Nodes int

	// Images names the images that every node has, of those that Main has built.
	// One of them has to be pause: no pod starts without.
	Images []string

	// ControllerManagerArgs are further arguments of kube-controller-manager, as
	// in controlplane.Options.
	ControllerManagerArgs []string

	// AuditPolicy is as in controlplane.Options.
	AuditPolicy string

	// Output receives a line whenever something is ready; nil for none.
	Output io.Writer
}

// Cluster is a running cluster. Its methods are safe for concurrent use.
type Cluster struct {
	dir     string
	plane   *controlplane.ControlPlane
	client  kubernetes.Interface
	kubectl string
	nodes   []*Node
	options Options
	output  sync.Mutex // guards Output
}

// Start starts a cluster, in a process that Main has called, and returns when
// all nodes are Ready. ctx bounds the start only: the cluster runs until Stop is called
// or this process ends, in whatever way. A process has one cluster at a time.
//
// It differs from a cluster made by kubeadm in what controlplane.Start lists,
// other than the API server's address, and in these points:
//   - No cluster DNS, and no kube-proxy: a pod reaches the API server and other
//     pods, but no other Service.
//   - The kubelets serve anybody, and their certificates are their own.
//   - A node that does not report for 12 s is NotReady, instead of 50 s.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	dir := os.Getenv(dirEnv)
	if os.Getenv(roleEnv) != roleInner || dir == "" {
		return nil, errors.New("cluster.Start: not in a process that cluster.Main has called")
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	c := &Cluster{dir: dir, options: o}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	began := time.Now()
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Dir:               filepath.Join(c.dir, "control-plane"),
		Address:           apiAddress,
		Port:              apiPort,
		ControllerManager: true,
		Scheduler:         true,
		AuditPolicy:       c.options.AuditPolicy,
		APIServerArgs: []string{
			"--advertise-address=" + bridgeAddress,
			// Names of nodes are in no DNS, for logs and exec.
			"--kubelet-preferred-address-types=InternalIP",
		},
		ControllerManagerArgs: append([]string{"--node-monitor-grace-period=12s"}, c.options.ControllerManagerArgs...),
		Output:                c.options.Output,
	})
	if err != nil {
		return err
	}
	c.plane = plane
	if c.client, err = kubernetes.NewForConfig(plane.Config()); err != nil {
		return err
	}
	if err := c.prepareKubectl(); err != nil {
		return err
	}
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	c.note("cluster of %d nodes ready after %.1fs", len(c.nodes), time.Since(began).Seconds())
	return nil
}

// startNodes starts all nodes side by side.
func (c *Cluster) startNodes(ctx context.Context) error {
	for index := 1; index <= c.options.Nodes; index++ {
		n, err := c.newNode(index)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	errs := make([]error, len(c.nodes))
	var all sync.WaitGroup
	for i, n := range c.nodes {
		all.Go(func() { errs[i] = n.Start(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Config returns a configuration for clients with every right, without
// client-side throttling.
func (c *Cluster) Config() *rest.Config { return c.plane.Config() }

// Client returns a client with every right.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// ControlPlane returns the control plane.
func (c *Cluster) ControlPlane() *controlplane.ControlPlane { return c.plane }

// Nodes returns the nodes in the order of their names.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns the node of that name, nil when there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// Kubectl runs kubectl with every right and returns its output. The error holds
// what kubectl wrote to standard error.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.kubectl, append([]string{"--kubeconfig=" + c.kubeconfig("admin")}, args...)...) //nolint:gosec // kubectl is the build's own
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (c *Cluster) prepareKubectl() error {
	assets, err := controlplane.FindAssets()
	if err != nil {
		return err
	}
	c.kubectl = filepath.Join(assets, "kubectl")
	if err := os.MkdirAll(filepath.Join(c.dir, "conf"), 0o750); err != nil {
		return err
	}
	return c.plane.WriteKubeconfig(c.kubeconfig("admin"), "kubectl", "system:masters")
}

func (c *Cluster) kubeconfig(name string) string {
	return filepath.Join(c.dir, "conf", name+".kubeconfig")
}

// Stop ends all nodes and the control plane.
func (c *Cluster) Stop() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.PowerOff())
	}
	if c.plane != nil {
		errs = append(errs, c.plane.Stop())
	}
	return errors.Join(errs...)
}

func (c *Cluster) note(format string, args ...any) {
	if c.options.Output == nil {
		return
	}
	c.output.Lock()
	defer c.output.Unlock()
	fmt.Fprintf(c.options.Output, format+"\n", args...)
}

// DeployBerth applies a kustomization that installs Berth, config/default or one
// that builds on it, and returns when the controller and an agent on every node
// are ready.
func (c *Cluster) DeployBerth(ctx context.Context, kustomization string) error {
	if _, err := c.Kubectl(ctx, nil, "apply", "-k", kustomization); err != nil {
		return err
	}
	for _, workload := range []string{"daemonset/berth-agent", "deployment/berth-controller"} {
		if _, err := c.Kubectl(ctx, nil, "--namespace=berth-system", "rollout", "status", workload, "--timeout=90s"); err != nil {
			pods, _ := c.Kubectl(ctx, nil, "--namespace=berth-system", "get", "pods,events")
			logs, _ := c.Kubectl(ctx, nil, "--namespace=berth-system", "logs", "--prefix", "--tail=10", "--selector=app.kubernetes.io/name=berth")
			return fmt.Errorf("deploy Berth: %w\n%s\n%s", err, pods, logs)
		}
	}
	return nil
}
