package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
	"github.com/berth-storage/berth/test/controlplane"
)

const (
	home     = "berth-system"
	service  = "berth-agent"
	class    = "berth-hostpath"
	perSlice = 100 // endpoints, as kube-controller-manager has it
	atOnce   = 32  // writes at a time
	patience = 10 * time.Minute
)

// bench is one run.
type bench struct {
	plane  *controlplane.ControlPlane
	client kubernetes.Interface
	dir    string
	size   int
}

// run measures a cluster with size nodes.
func run(ctx context.Context, binary string, size int) (f figures, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return figures{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	plane, err := controlplane.Start(ctx, controlplane.Options{
		ControllerManager: true,
		// No kubelet renews the nodes' leases; the first would call them dead. And
		// the Service has no pods, so that the second would remove what is said of
		// them.
		ControllerManagerArgs: []string{"--controllers=*,-node-lifecycle-controller,-endpointslice-controller"},
		Output:                os.Stderr,
	})
	if err != nil {
		return figures{}, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	config := plane.Config()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	b := &bench{plane: plane, dir: dir, size: size}
	if b.client, err = kubernetes.NewForConfig(config); err != nil {
		return figures{}, err
	}
	if err := b.furnish(ctx); err != nil {
		return figures{}, err
	}
	return b.measure(ctx, binary)
}

// measure starts the controller and has it make a volume on each node.
func (b *bench) measure(ctx context.Context, binary string) (f figures, err error) {
	f.nodes = b.size
	before, err := b.watches(ctx)
	if err != nil {
		return f, err
	}
	controller, err := b.startController(ctx, binary)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, controller.stop()) }()
	certificate, err := b.awaitCertificate(ctx)
	if err != nil {
		return f, err
	}
	if err := serveFakes(ctx, certificate); err != nil {
		return f, err
	}
	if err := pause(ctx, 10*time.Second); err != nil { // until all caches are full
		return f, err
	}
	if f.synced, _, err = controller.memory(); err != nil {
		return f, err
	}
	if err := b.claims(ctx, &f); err != nil {
		return f, err
	}
	if err := pause(ctx, 2*time.Second); err != nil { // until this program's own watch is over
		return f, err
	}
	after, err := b.watches(ctx)
	if err != nil {
		return f, err
	}
	f.watches = after - before
	if f.done, f.peak, err = controller.memory(); err != nil {
		return f, err
	}
	if f.connections, err = controller.connections(); err != nil {
		return f, err
	}
	f.cpu, err = controller.cpu()
	return f, err
}

// watches counts those of the API server's clients.
func (b *bench) watches(ctx context.Context) (int, error) {
	counts, err := b.plane.WatchCounts(ctx)
	total := 0
	for _, count := range counts {
		total += count
	}
	return total, err
}

// furnish makes what an installation and its nodes bring.
func (b *bench) furnish(ctx context.Context) error {
	if _, err := b.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	for _, name := range []string{"berth-ca", "berth-agent-tls", "berth-controller-tls"} {
		if _, err := b.client.CoreV1().Secrets(home).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	_, err := b.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: hostpath.Name,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if err := b.all(ctx, b.size, b.addNode); err != nil {
		return err
	}
	return b.all(ctx, (b.size+perSlice-1)/perSlice, b.addSlice)
}

// all calls f for each number below n.
func (b *bench) all(ctx context.Context, n int, f func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}

func nodeName(n int) string { return fmt.Sprintf("node-%05d", n) }

// addNode makes a Node with about as much in it as a cloud's.
func (b *bench) addNode(ctx context.Context, n int) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Labels: map[string]string{
		corev1.LabelHostname: nodeName(n), corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", n%3), corev1.LabelTopologyRegion: "region",
		corev1.LabelInstanceTypeStable: "large", "node.example.com/pool": "default",
	}}}
	for i := range 20 {
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{
			Names: []string{fmt.Sprintf("registry.example.com/team/image-%d@sha256:%064d", i, i)}, SizeBytes: 1 << 28,
		})
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Bench"}}
	_, err := b.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return err
}

func (b *bench) addSlice(ctx context.Context, n int) error {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service, n), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(agents.PortName), Port: ptr.To[int32](agents.DefaultPort)}},
	}
	for i := n * perSlice; i < min(b.size, (n+1)*perSlice); i++ {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			NodeName: ptr.To(nodeName(i)), Addresses: []string{nodeIP(i).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true)},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: home, Name: fmt.Sprintf("%s-%05d", service, i)},
		})
	}
	_, err := b.client.DiscoveryV1().EndpointSlices(home).Create(ctx, slice, metav1.CreateOptions{})
	return err
}

// awaitCertificate returns what the controller issues for the agents.
func (b *bench) awaitCertificate(ctx context.Context) (agenttls.Source, error) {
	for {
		secret, err := b.client.CoreV1().Secrets(home).Get(ctx, "berth-agent-tls", metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if len(secret.Data) > 0 {
			identity, err := agenttls.Parse(secret.Data[agenttls.CertificateFile], secret.Data[agenttls.KeyFile], secret.Data[agenttls.AuthoritiesFile])
			return fixed{identity}, err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// fixed is an identity that stays as it is.
type fixed struct{ identity *agenttls.Identity }

// Identity implements agenttls.Source.
func (f fixed) Identity() (*agenttls.Identity, error) { return f.identity, nil }

// claims makes a claim on each node, all at once, and waits until all are Bound.
func (b *bench) claims(ctx context.Context, f *figures) error {
	r := &record{made: make(map[string]time.Time, b.size), took: make(map[string]time.Duration, b.size), want: b.size, all: make(chan struct{})}
	factory := informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithNamespace(home))
	informer := factory.Core().V1().PersistentVolumeClaims().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: r.see, UpdateFunc: func(_, o any) { r.see(o) }}); err != nil {
		return err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	factory.StartWithContext(watching)
	factory.WaitForCacheSync(watching.Done())
	begun := time.Now()
	err := b.all(ctx, b.size, func(ctx context.Context, n int) error {
		r.make(nodeName(n))
		return b.addClaim(ctx, n)
	})
	if err != nil {
		return err
	}
	select {
	case <-r.all:
	case <-ctx.Done():
		return fmt.Errorf("%d of %d claims are bound: %w", r.bound(), b.size, context.Cause(ctx))
	}
	f.last = time.Since(begun)
	sorted := slices.Sorted(maps.Values(r.took))
	f.p50, f.p99 = sorted[len(sorted)/2], sorted[len(sorted)*99/100]
	return nil
}

// record is when claims were made, and how long they took to be Bound.
type record struct {
	mu   sync.Mutex
	made map[string]time.Time
	took map[string]time.Duration
	want int
	all  chan struct{} // closed when all are Bound
}

func (r *record) make(claim string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made[claim] = time.Now()
}

func (r *record) bound() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.took)
}

// see looks at a claim, as often as it changes.
func (r *record) see(o any) {
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Status.Phase != corev1.ClaimBound {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, already := r.took[claim.Name]; already {
		return
	}
	r.took[claim.Name] = time.Since(r.made[claim.Name])
	if len(r.took) == r.want {
		close(r.all)
	}
}

func (b *bench) addClaim(ctx context.Context, n int) error {
	_, err := b.client.CoreV1().PersistentVolumeClaims(home).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Annotations: map[string]string{"volume.kubernetes.io/selected-node": nodeName(n)}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(class),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}, metav1.CreateOptions{})
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// startController starts berth as an installation would.
func (b *bench) startController(ctx context.Context, binary string) (*process, error) {
	kubeconfig := filepath.Join(b.dir, "kubeconfig")
	if err := b.plane.WriteKubeconfig(kubeconfig, "berth", "system:masters"); err != nil {
		return nil, err
	}
	output, err := os.Create(filepath.Join(b.dir, "berth.log"))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := exec.CommandContext(ctx, binary, "controller", "--kubeconfig="+kubeconfig, "--leader-elect-namespace="+home, //nolint:gosec // the binary to measure
		"--agent-namespace="+home, "--agent-service="+service,
		"--metrics-bind-address=127.0.0.1:8080", "--health-probe-bind-address=0")
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &process{cmd}, cmd.Start()
}
