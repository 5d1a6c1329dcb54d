package stuck_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/test/controlplane"
)

const (
	home      = "berth-system"
	service   = "berth-agent"
	claimName = "data"
)

// site is a cluster with Berth on it: the nodes node-1 and node-2 with agents,
// node-3 without.
type site struct {
	*gomega.WithT
	t          *testing.T
	client     client.Client
	dir        string
	kubeconfig string // berth's
	admin      string // kubectl's
	// placed are the claims, as namespace/name, that were made with a node.
	placed map[string]bool
}

// installed makes what an installation brings, once.
var installed sync.Once

func newSite(t *testing.T) *site {
	t.Helper()
	c, err := client.New(plane.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &site{
		WithT: gomega.NewWithT(t), t: t, client: c, dir: dir,
		kubeconfig: filepath.Join(dir, "kubeconfig"), admin: filepath.Join(dir, "admin"), placed: map[string]bool{},
	}
	s.ok(plane.WriteKubeconfig(s.kubeconfig, berthUser))
	s.ok(plane.WriteKubeconfig(s.admin, "admin", "system:masters"))
	installed.Do(s.install)
	return s
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) create(o client.Object) {
	s.t.Helper()
	s.ok(s.client.Create(s.t.Context(), o))
}

// get reads o anew. One that does not exist stays as it is.
func (s *site) get(o client.Object) {
	s.t.Helper()
	s.ok(client.IgnoreNotFound(s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)))
}

// install makes the namespace, the Secrets, and berth's rights.
func (s *site) install() {
	s.t.Helper()
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home}})
	for _, name := range []string{"berth-ca", "berth-agent-tls", "berth-controller-tls", "berth-metrics-tls"} {
		s.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}})
	}
	subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: berthUser}}
	for _, file := range []string{"role.yaml", "metrics_reader_role.yaml"} {
		text, err := os.ReadFile(filepath.Join("../../config/rbac", file))
		s.ok(err)
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			role := &rbacv1.ClusterRole{} // a Role has the same rules
			s.ok(yaml.Unmarshal([]byte(document), role))
			ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: role.Kind, Name: role.Name}
			meta := metav1.ObjectMeta{Name: role.Name, Namespace: role.Namespace}
			switch {
			case role.Kind == "Role":
				s.create(&rbacv1.Role{ObjectMeta: meta, Rules: role.Rules})
				s.create(&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
			case file == "role.yaml":
				s.create(role)
				s.create(&rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
			default:
				s.create(role)
			}
		}
	}
}

// node makes a Node that is ready for pods, as far as kube-scheduler can tell.
func (s *site) node(name string) {
	s.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	s.create(node)
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), node) })
	before := node.DeepCopy()
	node.Spec.Taints = nil // "not ready", from the API server
	s.ok(s.client.Patch(s.t.Context(), node, client.MergeFrom(before)))
	before = node.DeepCopy()
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test", LastTransitionTime: metav1.Now()}}
	node.Status.Allocatable = corev1.ResourceList{
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("16Gi"),
	}
	node.Status.Capacity = node.Status.Allocatable
	s.ok(s.client.Status().Patch(s.t.Context(), node, client.StrategicMergeFrom(before)))
}

// agent is a node's.
type agent struct {
	*process
	s       *site
	node    string
	address string
	pools   map[string]string // directories by name
	probes  string
	metrics string
}

// newAgent starts the agent of a node, with pools of its own, and publishes where it is.
func (s *site) newAgent(node string, pools ...string) *agent {
	s.t.Helper()
	ip := machineAddress(s.t)
	a := &agent{s: s, node: node, address: freeAddress(s.t, ip), probes: freeAddress(s.t, loopback), metrics: freeAddress(s.t, loopback), pools: map[string]string{}}
	for _, pool := range pools {
		a.pools[pool] = filepath.Join(s.dir, node, pool)
		s.ok(os.MkdirAll(a.pools[pool], 0o750))
	}
	address, err := net.ResolveTCPAddr("tcp", a.address)
	s.ok(err)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: home, Name: node, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{NodeName: &node, Addresses: []string{address.IP.String()}}},
		Ports:       []discoveryv1.EndpointPort{{Port: ptr.To(int32(address.Port))}},
	}
	s.create(slice)
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), slice) })
	a.start()
	return a
}

func (a *agent) start() {
	a.s.t.Helper()
	certificates := a.s.mount("berth-agent-tls")
	args := []string{
		"agent", "--node-name=" + a.node, "--listen=" + a.address,
		"--tls-cert-file=" + filepath.Join(certificates, agenttls.CertificateFile), "--tls-key-file=" + filepath.Join(certificates, agenttls.KeyFile),
		"--tls-ca-file=" + filepath.Join(certificates, agenttls.AuthoritiesFile),
		"--metrics-bind-address=" + a.metrics, "--metrics-secure=true", "--health-probe-bind-address=" + a.probes,
	}
	for name, dir := range a.pools {
		args = append(args, "--pool="+name+"="+dir)
	}
	a.process = a.s.launch(args...)
}

// mount writes a Secret into a folder, once the controller has filled it.
func (s *site) mount(name string) string {
	s.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}}
	s.Eventually(func() int { s.get(secret); return len(secret.Data) }).Should(gomega.Equal(3))
	dir := filepath.Join(s.dir, name)
	s.ok(os.MkdirAll(dir, 0o700))
	for file, text := range secret.Data {
		s.ok(os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	return dir
}

var loopback = net.IPv4(127, 0, 0, 1)

// machineAddress returns an address of this machine that an EndpointSlice may
// have: not one of loopback.
func machineAddress(t *testing.T) net.IP {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.To4() != nil && network.IP.IsGlobalUnicast() {
			return network.IP
		}
	}
	t.Skip("this machine has no address but loopback's, which an EndpointSlice can't have")
	return nil
}

func freeAddress(t *testing.T, ip net.IP) string {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// controllerArgs are what a controller with agents is started with.
func (s *site) controllerArgs(flags ...string) []string {
	return append([]string{
		"controller", "--kubeconfig=" + s.kubeconfig, "--agent-namespace=" + home, "--agent-service=" + service, "--leader-elect-namespace=" + home,
		"--tls-metrics-secret=berth-metrics-tls", "--metrics-bind-address=0", "--health-probe-bind-address=0",
	}, flags...)
}

// process is a running berth. Its output is shown when the test fails.
type process struct {
	s      *site
	cmd    *exec.Cmd
	output string // a file
	ended  chan struct{}
}

func (s *site) launch(args ...string) *process {
	s.t.Helper()
	output, err := os.CreateTemp(s.dir, "output-")
	s.ok(err)
	defer output.Close()
	p := &process{s: s, cmd: exec.Command(binary, args...), output: output.Name(), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.ok(p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	s.t.Cleanup(func() {
		p.kill()
		if s.t.Failed() {
			s.t.Logf("output of berth %s:\n%s", args[0], p.said())
		}
	})
	return p
}

func (p *process) said() string {
	text, err := os.ReadFile(p.output)
	p.s.ok(err)
	return string(text)
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop asks the process to end, and waits until it has.
func (p *process) stop() {
	p.s.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.s.t.Errorf("berth ended with status %d when asked to", code)
	}
}

// tenant is a namespace in which something waits. Its class has the same name.
type tenant struct {
	*site
	name string
}

func (s *site) tenant(name string) *tenant {
	s.t.Helper()
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	return &tenant{site: s, name: name}
}

func immediately(c *storagev1.StorageClass) {
	c.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
}

func parameters(pairs ...string) func(*storagev1.StorageClass) {
	return func(c *storagev1.StorageClass) {
		for i := 0; i < len(pairs); i += 2 {
			c.Parameters[pairs[i]] = pairs[i+1]
		}
	}
}

// class creates a class of the hostpath driver that waits for its first consumer,
// unless a change says otherwise.
func (n *tenant) class(changes ...func(*storagev1.StorageClass)) {
	n.t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: n.name}, Provisioner: hostpath.Name, Parameters: map[string]string{},
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete), VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	for _, change := range changes {
		change(class)
	}
	n.create(class)
	n.t.Cleanup(func() { _ = n.client.Delete(context.Background(), class) })
}

// claim creates the claim "data" of the tenant's class.
func (n *tenant) claim(changes ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	n.t.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.name, Name: claimName, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(n.name),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: sized("1Gi")},
		},
	}
	for _, change := range changes {
		change(claim)
	}
	n.create(claim)
	if claim.Annotations[volumehelpers.AnnSelectedNode] != "" {
		n.placed[claim.Namespace+"/"+claim.Name] = true
	}
	return claim
}

func sized(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

func asking(size string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized(size) }
}

func called(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Name = name }
}

// pod creates the pod "app" with the claim "data", to run on a node when one is
// named.
func (n *tenant) pod(node string) {
	n.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.name, Name: "app"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app", Image: "app", VolumeMounts: []corev1.VolumeMount{{Name: claimName, MountPath: "/data"}}}},
			Volumes: []corev1.Volume{{Name: claimName, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName},
			}}},
		},
	}
	if node != "" {
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	// The namespace may have no service account yet.
	n.Eventually(func() error { return n.client.Create(n.t.Context(), pod.DeepCopy()) }).Should(gomega.Succeed())
}

// expectCapacityTracked waits until kube-scheduler is told to look at how much
// room nodes have, which it is once all of them were asked.
func (i *installation) expectCapacityTracked() {
	i.t.Helper()
	driver := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: hostpath.Name}}
	i.Eventually(func() bool { i.get(driver); return ptr.Deref(driver.Spec.StorageCapacity, false) }).Should(gomega.BeTrue())
}

// expectBound waits until the claim is bound.
func (n *tenant) expectBound(claim *corev1.PersistentVolumeClaim) {
	n.t.Helper()
	n.Eventually(func() corev1.PersistentVolumeClaimPhase { n.get(claim); return claim.Status.Phase }).Should(gomega.Equal(corev1.ClaimBound))
}

// kubectl returns what kubectl prints.
func (s *site) kubectl(args ...string) string {
	s.t.Helper()
	assets, err := controlplane.FindAssets()
	s.ok(err)
	cmd := exec.CommandContext(s.t.Context(), filepath.Join(assets, "kubectl"), append([]string{"--kubeconfig=" + s.admin}, args...)...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatal(fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, output))
	}
	return string(output)
}
