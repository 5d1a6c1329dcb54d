package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	nodeName  = "demo-node"
	namespace = "default"

	// serviceAccount is the user that config/rbac gives its rights to.
	serviceAccount = "system:serviceaccount:berth-system:berth-controller"
)

// demo is the stage that the steps play on: a control plane, a node, Berth, and
// the folder they all keep their files in.
type demo struct {
	*screen
	// cancel ends the demo early, with a reason.
	cancel context.CancelCauseFunc

	root       string // the repository
	dir        string // removed at the end
	pool       string
	kubeconfig string

	warden     *warden
	plane      *controlplane.ControlPlane
	client     kubernetes.Interface
	shell      *shell
	controller *controller
	metricsURL string
	// servers are there in the demonstration of NFS only.
	servers *servers
}

// open makes the folder, and starts the control plane in it.
func (d *demo) open(ctx context.Context) error {
	var err error
	if d.root, err = controlplane.RepositoryRoot(); err != nil {
		return err
	}
	assets, err := controlplane.FindAssets()
	if err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "berth-demo-"); err != nil {
		return err
	}
	if d.warden, err = startWarden(d.dir); err != nil {
		return errors.Join(err, os.RemoveAll(d.dir))
	}
	d.pool = filepath.Join(d.dir, "pool")
	d.kubeconfig = filepath.Join(d.dir, "kubeconfig")
	if err := os.Mkdir(d.pool, 0o755); err != nil { //nolint:gosec // G301: pods of any user pass through a pool
		return err
	}
	d.plane, err = controlplane.Start(ctx, controlplane.Options{
		AssetsDir:         assets,
		ControllerManager: true,
		Scheduler:         true,
		Output:            &outputOf{d.screen},
	})
	if err != nil {
		return err
	}
	if err := d.plane.WriteKubeconfig(d.kubeconfig, "demo-admin", "system:masters"); err != nil {
		return err
	}
	d.shell = &shell{dir: d.root, assets: assets, env: []string{
		"KUBECONFIG=" + d.kubeconfig, "POOL=" + d.pool, "KUBECACHEDIR=" + filepath.Join(d.dir, "cache"),
	}}
	d.client, err = kubernetes.NewForConfig(d.plane.Config())
	return err
}

// outputOf shows what it is written.
type outputOf struct{ *screen }

func (o *outputOf) Write(text []byte) (int, error) {
	o.Output(string(text))
	return len(text), nil
}

// close ends everything that open and startBerth began.
func (d *demo) close() error {
	var errs []error
	if d.controller != nil {
		errs = append(errs, d.controller.stop())
	}
	if d.plane != nil {
		errs = append(errs, d.plane.Stop())
	}
	if d.servers != nil {
		d.servers.close()
	}
	if d.warden != nil {
		errs = append(errs, d.warden.close())
	}
	return errors.Join(errs...)
}

// addNode adds a Node as its kubelet would, and keeps it alive until ctx ends.
func (d *demo) addNode(ctx context.Context) error {
	_, err := d.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{
			corev1.LabelHostname: nodeName,
			corev1.LabelOSStable: "linux",
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("add a node: %w", err)
	}
	if err := d.beat(ctx); err != nil {
		return err
	}
	go d.keepAlive(ctx)
	return d.await(ctx, "the node takes pods", func(ctx context.Context) error {
		node, err := d.client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("it is tainted: %s", node.Spec.Taints[0].Key)
		}
		return nil
	})
}

// keepAlive plays the kubelet's heartbeat, without which kube-controller-manager
// takes a node for dead after 50 seconds.
func (d *demo) keepAlive(ctx context.Context) {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := d.beat(ctx); err != nil && ctx.Err() == nil {
			d.cancel(err)
			return
		}
	}
}

// beat reports the node as alive.
func (d *demo) beat(ctx context.Context) error {
	room := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("2"),
		corev1.ResourceMemory: resource.MustParse("4Gi"),
		corev1.ResourcePods:   resource.MustParse("110"),
	}
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		Capacity:    room,
		Allocatable: room,
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Demo", Message: "there is no kubelet",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}},
	}})
	if err != nil {
		return err
	}
	if _, err := d.client.CoreV1().Nodes().PatchStatus(ctx, nodeName, patch); err != nil {
		return fmt.Errorf("report the node's status: %w", err)
	}
	return nil
}

// startBerth starts bin/berth with the rights of config/rbac, and returns when
// it works.
func (d *demo) startBerth(ctx context.Context) error {
	kubeconfig := filepath.Join(d.dir, "berth.kubeconfig")
	if err := d.plane.WriteKubeconfig(kubeconfig, serviceAccount); err != nil {
		return err
	}
	ports, err := freeAddresses(2)
	if err != nil {
		return err
	}
	d.metricsURL = "http://" + ports[0] + "/metrics"
	argv := []string{
		filepath.Join(d.root, "bin", "berth"), "controller",
		"--leader-elect-namespace=berth-system",
		"--metrics-bind-address=" + ports[0], "--health-probe-bind-address=" + ports[1],
	}
	if d.servers == nil {
		argv = append(argv, "--node-name="+nodeName, "--pool=default="+d.pool)
	}
	d.Command("bin/" + strings.NewReplacer(d.root+"/bin/", "", d.pool, "$POOL", " --", " \\\n       --").Replace(strings.Join(argv, " ")))
	log := filepath.Join(d.dir, "berth.log")
	d.controller, err = startController(d.warden, log, argv, []string{"KUBECONFIG=" + kubeconfig})
	if err != nil {
		return fmt.Errorf("start bin/berth (make build): %w", err)
	}
	go func() {
		<-d.controller.ended
		d.cancel(fmt.Errorf("bin/berth ended by itself (%v); its log ends with:\n%s", d.controller.cmd.ProcessState, d.controller.logTail()))
	}()
	return d.await(ctx, "Berth is ready", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ports[1]+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: %s", response.Status)
		}
		return nil
	})
}

// freeAddresses returns that many different local addresses nobody listens on.
func freeAddresses(count int) ([]string, error) {
	addresses := make([]string, count)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to wait for
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

// stay says what to try, and waits for Ctrl-C.
func (d *demo) stay(ctx context.Context) error {
	d.Say("\nIt stays up, for you to go on. In another terminal, in this folder:\n")
	d.Output(fmt.Sprintf("export KUBECONFIG=%s\nexport POOL=%s\nexport PATH=%s:$PATH", d.kubeconfig, d.pool, d.shell.assets))
	if d.servers != nil {
		d.Output(fmt.Sprintf("export ONE=%s\nexport TWO=%s", d.servers.oneDir, d.servers.twoDir))
	}
	d.Say("\nThen, for example:\n")
	examples := []string{
		"kubectl get pvc,pv",
		"kubectl delete pod web --force && kubectl delete pvc web && ls -l $POOL",
		"kubectl create ns shop && kubectl -n shop apply -f config/samples/claim-archive.yaml && find $POOL",
	}
	if d.servers != nil {
		examples = []string{"kubectl get pvc,pv", "find $ONE $TWO", "kubectl delete pvc late && find $TWO"}
	}
	d.Output(strings.Join(append(examples,
		"kubectl get events --sort-by=.lastTimestamp",
		"curl -s "+d.metricsURL+" | grep -E '^(berth|controller_persistent)'",
		"tail -f "+d.controller.logPath,
	), "\n"))
	d.Say("\nCtrl-C ends it all and removes every file it made.")
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, errInterrupted) {
		return err
	}
	return nil
}
