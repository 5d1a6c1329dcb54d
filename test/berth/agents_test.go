package berth_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/provisioner/hostpath"
)

const (
	// home is the namespace that the generated Role is for.
	home = "berth-system"
	// minimalUser has no rights but those of config/rbac.
	minimalUser     = "berth-with-minimal-rights"
	selectedNodeKey = "volume.kubernetes.io/selected-node"
)

// fleet is a site with several nodes, each with an agent on an address of its
// own. The controller has no rights but the generated ones.
type fleet struct {
	*site
	certificates string // what kubelet would mount
	nodes        []*agentNode
	controller   *process
}

type agentNode struct {
	name, address, pool string
	agent               *process
}

// newFleet starts a controller that issues certificates.
func newFleet(t *testing.T, size int) *fleet {
	t.Helper()
	f := newNodes(t, size)
	f.startController()
	f.mount()
	return f
}

// newNodes starts agents only.
func newNodes(t *testing.T, size int) *fleet {
	t.Helper()
	f := &fleet{site: newSite(t), certificates: t.TempDir()}
	f.ok(plane.WriteKubeconfig(f.kubeconfig, minimalUser))
	f.home()
	ip := machineAddress(t)
	for n := range size {
		node := &agentNode{name: fmt.Sprintf("%s-%d", f.name, n), address: freeAddressOf(t, ip), pool: filepath.Join(f.dir, strconv.Itoa(n))}
		f.ok(os.MkdirAll(filepath.Join(node.pool, ".berth"), 0o700))
		f.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.name, Labels: map[string]string{corev1.LabelHostname: node.name}}})
		f.nodes = append(f.nodes, node)
		f.publish(node)
		f.startAgent(node)
	}
	return f
}

func (f *fleet) startController(flags ...string) {
	f.t.Helper()
	f.controller = f.launch("", append([]string{
		"controller", "--kubeconfig=" + f.kubeconfig, "--metrics-bind-address=0", "--health-probe-bind-address=0",
		"--leader-elect-namespace=" + home, "--agent-namespace=" + home, "--agent-service=" + f.name,
	}, flags...)...)
}

// certificateFlags name the files in dir.
func certificateFlags(dir string) []string {
	return []string{
		"--tls-cert-file=" + filepath.Join(dir, agenttls.CertificateFile),
		"--tls-key-file=" + filepath.Join(dir, agenttls.KeyFile),
		"--tls-ca-file=" + filepath.Join(dir, agenttls.AuthoritiesFile),
	}
}

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

func freeAddressOf(t *testing.T, ip net.IP) string {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// publish says where the agent of a node is, as its Service would.
func (f *fleet) publish(node *agentNode) {
	f.t.Helper()
	address, err := net.ResolveTCPAddr("tcp", node.address)
	f.ok(err)
	slice := f.slice(node)
	slice.AddressType = discoveryv1.AddressTypeIPv4
	slice.Endpoints = []discoveryv1.Endpoint{{NodeName: ptr.To(node.name), Addresses: []string{address.IP.String()}}}
	slice.Ports = []discoveryv1.EndpointPort{{Port: ptr.To(int32(address.Port))}}
	f.create(slice)
}

// slice names the object that publish makes.
func (f *fleet) slice(node *agentNode) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: node.name, Labels: map[string]string{discoveryv1.LabelServiceName: f.name}},
	}
}

// home makes what an installation brings: the namespace, the Secrets, the rights.
func (f *fleet) home() {
	f.t.Helper()
	var ours []client.Object
	if namespace := (&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home}}); !f.get(namespace) {
		ours = append(ours, namespace)
	}
	for _, name := range []string{"berth-ca", "berth-agent-tls", "berth-controller-tls"} {
		ours = append(ours, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}})
	}
	text, err := os.ReadFile("../../config/rbac/role.yaml")
	f.ok(err)
	subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: minimalUser}}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		kind := metav1.TypeMeta{}
		f.ok(yaml.Unmarshal([]byte(document), &kind))
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind.Kind}
		switch kind.Kind {
		case "ClusterRole":
			role := &rbacv1.ClusterRole{}
			f.ok(yaml.Unmarshal([]byte(document), role))
			ref.Name = role.Name
			ours = append(ours, role, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: ref, Subjects: subjects})
		case "Role":
			role := &rbacv1.Role{}
			f.ok(yaml.Unmarshal([]byte(document), role))
			ref.Name = role.Name
			ours = append(ours, role, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: role.Name}, RoleRef: ref, Subjects: subjects})
		}
	}
	for _, o := range ours {
		f.create(o)
		if _, ok := o.(*corev1.Namespace); !ok { // which takes long, and stays
			f.t.Cleanup(func() { _ = f.client.Delete(context.Background(), o) })
		}
	}
}

// startAgent starts the agent of a node, or starts it again.
func (f *fleet) startAgent(node *agentNode) {
	f.t.Helper()
	node.agent = f.launch("", append([]string{
		"agent", "--node-name=" + node.name, "--pool=default=" + node.pool, "--listen=" + node.address,
		"--metrics-bind-address=0", "--health-probe-bind-address=0",
	}, certificateFlags(f.certificates)...)...)
}

// mount brings the agents their Secret, once the controller has filled it.
func (f *fleet) mount() {
	f.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: "berth-agent-tls"}}
	f.Eventually(func() int { f.get(secret); return len(secret.Data) }).Should(gomega.Equal(3))
	for name, text := range secret.Data {
		f.ok(os.WriteFile(filepath.Join(f.certificates, name), text, 0o600))
	}
}

// ready says what kubelet would say of a node.
func (f *fleet) ready(node *agentNode) {
	f.t.Helper()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.name}}
	f.get(o)
	before := o.DeepCopy()
	o.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	f.ok(f.client.Status().Patch(f.t.Context(), o, client.StrategicMergeFrom(before)))
}

// claimOn creates a claim whose pod was scheduled to node.
func (f *fleet) claimOn(name string, node *agentNode) *corev1.PersistentVolumeClaim {
	f.t.Helper()
	claim := f.newClaim(name, f.name)
	claim.Annotations[selectedNodeKey] = node.name
	f.create(claim)
	return claim
}

// expectOn waits until claim is bound to a volume on node.
func (f *fleet) expectOn(claim *corev1.PersistentVolumeClaim, node *agentNode) {
	f.t.Helper()
	volume := f.expectBound(claim)
	if on := volume.Annotations[hostpath.AnnNode]; on != node.name {
		f.t.Errorf("the volume is on node %s, want %s", on, node.name)
	}
	if info, err := os.Stat(volume.Spec.Local.Path); err != nil || !info.IsDir() || !strings.HasPrefix(volume.Spec.Local.Path, node.pool+"/") {
		f.t.Errorf("directory %s: %v", volume.Spec.Local.Path, err)
	}
}

func TestAgentsServeTheirNodes(t *testing.T) {
	f := newFleet(t, 2)
	f.class(f.name, storagev1.VolumeBindingWaitForFirstConsumer)
	first, second := f.nodes[0], f.nodes[1]
	one, two := f.claimOn("one", first), f.claimOn("two", second)
	f.expectOn(one, first)
	f.expectOn(two, second)

	// An agent that is gone delays the claims of its node only.
	first.agent.kill()
	waiting := f.claimOn("waiting", first)
	f.Eventually(func() []string { return f.warnings(waiting) }).Should(gomega.ContainElement(gomega.ContainSubstring(
		"agent on node %s (%s): connect: connection refused", first.name, first.address)))
	begun := time.Now()
	f.expectOn(f.claimOn("meanwhile", second), second)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("a claim of another node took %s", took)
	}
	f.startAgent(first)
	f.expectOn(waiting, first)

	// Whoever is Ready is chosen for a claim that no pod asks for.
	anywhere := f.name + "-anywhere"
	f.class(anywhere, storagev1.VolumeBindingImmediate)
	f.ready(second)
	claim := f.newClaim("anywhere", anywhere)
	f.create(claim)
	f.expectOn(claim, second)

	claims := &corev1.PersistentVolumeClaimList{}
	f.ok(f.client.List(t.Context(), claims, client.InNamespace(f.name)))
	for i := range claims.Items {
		f.delete(&claims.Items[i])
	}
	f.Eventually(f.volumes).Should(gomega.BeEmpty())
	for _, node := range f.nodes {
		left, err := filepath.Glob(filepath.Join(node.pool, "[^.]*"))
		f.ok(err)
		if len(left) > 0 {
			t.Errorf("left on node %s: %v", node.name, left)
		}
		node.agent.stop()
	}
	f.controller.stop()
	if output := f.controller.output.String(); strings.Contains(output, "forbidden") {
		t.Error("the controller asked for something that it has no right to")
	}
}

// TestCertificatesFromElsewhereAreFollowed: nothing is issued, and the controller
// goes over to a whole new authority while it runs. The agent starts anew only so
// that there is a new connection.
func TestCertificatesFromElsewhereAreFollowed(t *testing.T) {
	f := newNodes(t, 1)
	f.class(f.name, storagev1.VolumeBindingWaitForFirstConsumer)
	mine := t.TempDir()
	f.startController(certificateFlags(mine)...)
	for _, name := range []string{"one", "two"} {
		authority, err := tlstest.NewAuthority()
		f.ok(err)
		f.ok(authority.Write(mine, tlstest.Controller))
		f.ok(authority.Write(f.certificates, tlstest.Agent))
		f.nodes[0].agent.kill()
		f.startAgent(f.nodes[0])
		f.expectOn(f.claimOn(name, f.nodes[0]), f.nodes[0])
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: "berth-ca"}}
	if f.get(secret); len(secret.Data) > 0 {
		t.Error("an authority was made")
	}
	f.controller.stop()
}

// class creates a class of hostpath.
func (f *fleet) class(name string, mode storagev1.VolumeBindingMode) {
	f.t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: hostpath.Name,
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete), VolumeBindingMode: &mode,
	}
	f.create(class)
	f.t.Cleanup(func() { _ = f.client.Delete(context.Background(), class) })
}
