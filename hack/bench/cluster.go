package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	nodeName = "bench"

	// saNamespace is where the service accounts would be that the provisioners call
	// themselves.
	saNamespace = "bench"

	quietFor  = 3 * time.Second
	quietPoll = 500 * time.Millisecond
	// quietTimeout is how long kube-controller-manager may have something left
	// to do after a run.
	quietTimeout = 10 * time.Minute
)

// cluster is the control plane that everything runs on.
type cluster struct {
	plane   *controlplane.ControlPlane
	client  kubernetes.Interface
	version string
	// processes are the ids of the control plane's processes and of this one.
	processes map[string]int
	dir       string
}

// startCluster starts a control plane with one Node, without a kubelet.
func startCluster(ctx context.Context, c config, dir string, notes io.Writer) (*cluster, error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Dir:                   dir,
		ControllerManager:     true,
		ControllerManagerArgs: controllerManagerArgs(c.kcmQPS),
		AuditPolicy:           auditPolicy,
		Output:                notes,
	})
	if err != nil {
		return nil, err
	}
	cl := &cluster{plane: plane, dir: dir}
	if err := cl.prepare(ctx); err != nil {
		return nil, errors.Join(err, plane.Stop())
	}
	return cl, nil
}

// controllerManagerArgs leave everything that concerns volumes at its default,
// unless qps is given.
func controllerManagerArgs(qps int) []string {
	// No kubelet renews the Node's lease; this controller would call it dead.
	args := []string{"--controllers=*,-node-lifecycle-controller"}
	if qps > 0 {
		args = append(args, fmt.Sprintf("--kube-api-qps=%d", qps), fmt.Sprintf("--kube-api-burst=%d", qps))
	}
	return args
}

func (c *cluster) prepare(ctx context.Context) error {
	config := c.plane.Config()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	c.client = client
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	c.version = version.GitVersion
	if err := c.grant(ctx); err != nil {
		return err
	}
	if err := c.addNode(ctx); err != nil {
		return err
	}
	c.processes = map[string]int{"bench": os.Getpid()}
	children := childrenByCommand()
	for name, command := range map[string]string{
		"apiserver": "kube-apiserver",
		"etcd":      "etcd",
		"kcm":       "kube-controller-manager",
	} {
		pid, ok := children[command[:min(len(command), 15)]]
		if !ok {
			return fmt.Errorf("found no process of %s: CPU times and memory are read from /proc", command)
		}
		c.processes[name] = pid
	}
	return nil
}

// grant gives the provisioners every right.
func (c *cluster) grant(ctx context.Context) error {
	_, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bench-provisioners"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:serviceaccounts:" + saNamespace}},
	}, metav1.CreateOptions{})
	return err
}

func (c *cluster) addNode(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   nodeName,
		Labels: map[string]string{corev1.LabelHostname: nodeName, corev1.LabelOSStable: "linux"},
	}}
	if _, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	// A patch, since kube-controller-manager writes to new Nodes as well.
	ready, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Bench"},
	}}})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().Nodes().Patch(ctx, nodeName, types.StrategicMergePatchType, ready, metav1.PatchOptions{}, "status")
	return err
}

// userOf is the user that a provisioner acts as. It has the name and the groups of
// a service account, since API priority and fairness has a place for those that
// differs from other users'.
func userOf(run string) string {
	return "system:serviceaccount:" + saNamespace + ":" + run
}

func (c *cluster) kubeconfig(run string) (string, error) {
	path := filepath.Join(c.dir, "conf", "bench-"+run+".kubeconfig")
	return path, c.plane.WriteKubeconfig(path, userOf(run), "system:serviceaccounts", "system:serviceaccounts:"+saNamespace)
}

// awaitQuiet returns when nobody has asked the API server for anything about
// volumes, claims and events for a while, other than by lists and watches:
// then kube-controller-manager has worked off what a run has left it.
func (c *cluster) awaitQuiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietTimeout, errors.New("the cluster did not become quiet"))
	defer cancel()
	last, since := -1.0, time.Now()
	for {
		count, err := c.activity(ctx)
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		if count != last {
			last, since = count, time.Now()
		}
		if time.Since(since) >= quietFor {
			return nil
		}
		if err := sleep(ctx, quietPoll); err != nil {
			return err
		}
	}
}

// activity counts the requests that awaitQuiet waits for an end of.
func (c *cluster) activity(ctx context.Context) (float64, error) {
	counts, err := c.plane.RequestCounts(ctx)
	if err != nil {
		return 0, err
	}
	var total float64
	for key, count := range counts {
		switch key.Resource {
		case "persistentvolumes", "persistentvolumeclaims", "events":
			if key.Verb != "LIST" && key.Verb != "WATCH" {
				total += count
			}
		}
	}
	return total, nil
}

func (c *cluster) describe(cfg config) environmentReport {
	return environmentReport{
		Kubernetes: c.version,
		Go:         runtime.Version(),
		CPUs:       runtime.NumCPU(),
		KCMQPS:     cfg.kcmQPS,
		Rate:       cfg.rate,
		Deletions:  cfg.deletions,

		WaitForConsumer: cfg.waitForConsumer,
	}
}

func (c *cluster) stop() error {
	return c.plane.Stop()
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
