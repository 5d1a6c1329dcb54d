package berth_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/request"
)

// restored is the pattern of docs/operations.md.
const restored = "restored/${pvc.namespace}/${pvc.name}"

// adoptingFleet is a fleet of two nodes, of which the first has the smaller disk, and
// the directory of the claim reports.
type adoptingFleet struct {
	*fleet
	small, big *agentNode
}

func newAdoptingFleet(t *testing.T, mode storagev1.VolumeBindingMode) *adoptingFleet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f := newNodes(t, 2)
	a := &adoptingFleet{fleet: f, small: f.nodes[0], big: f.nodes[1]}
	a.small.agent.kill() // it has the directory below what is mounted now
	f.ok(unix.Mount("tmpfs", a.small.pool, "tmpfs", 0, "size=128m"))
	t.Cleanup(func() { _ = unix.Unmount(a.small.pool, unix.MNT_DETACH) })
	f.ok(os.Mkdir(filepath.Join(a.small.pool, ".berth"), 0o700))
	f.startAgent(a.small)
	f.startController()
	f.mount()
	for _, node := range f.nodes {
		f.ready(node)
	}
	f.adoptingClass(restored, mode)
	return a
}

func (f *fleet) adoptingClass(pattern string, mode storagev1.VolumeBindingMode) {
	f.t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: f.name}, Provisioner: hostpath.Name,
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimRetain), VolumeBindingMode: &mode,
		Parameters: map[string]string{"pathPattern": pattern, "existing": "adopt"},
	}
	f.create(class)
	f.t.Cleanup(func() { _ = f.client.Delete(context.Background(), class) })
}

// bring makes the directory of the claim reports on a node, with so much in it.
func (f *fleet) bring(node *agentNode, mebibytes int) string {
	f.t.Helper()
	dir := filepath.Join(node.pool, "restored", f.name, "reports")
	f.ok(os.MkdirAll(dir, 0o750))
	f.ok(os.WriteFile(filepath.Join(dir, "precious"), make([]byte, mebibytes<<20), 0o600))
	return dir
}

// expectAdopted waits until claim has the directory dir on node, and an event says so.
func (f *fleet) expectAdopted(claim *corev1.PersistentVolumeClaim, node *agentNode, dir string) {
	f.t.Helper()
	volume := f.expectBound(claim)
	if volume.Annotations[hostpath.AnnNode] != node.name || volume.Spec.Local.Path != dir || volume.Annotations[request.AnnAdopted] != "true" {
		f.t.Errorf("it has %s on %v", volume.Spec.Local.Path, volume.Annotations)
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		f.t.Error(err)
	}
	f.Eventually(func() []string { return f.notes(claim, "ProvisioningSucceeded") }).Should(gomega.ContainElement(
		gomega.ContainSubstring("adopted the directory %q with what is in it on node %s", volume.Annotations[request.AnnPath], node.name)))
	for _, other := range f.nodes {
		if made, _ := filepath.Glob(filepath.Join(other.pool, "restored", f.name, "*")); other != node && len(made) > 0 {
			f.t.Errorf("node %s has %v", other.name, made)
		}
	}
}

// notes returns what the events with a reason say of an object.
func (f *fleet) notes(o client.Object, reason string) []string {
	f.t.Helper()
	var list eventsv1.EventList
	f.ok(f.client.List(f.t.Context(), &list, client.InNamespace(o.GetNamespace())))
	var notes []string
	for _, e := range list.Items {
		if e.Regarding.UID == o.GetUID() && e.Reason == reason {
			notes = append(notes, e.Note)
		}
	}
	return notes
}

func (f *fleet) newReports(size string) *corev1.PersistentVolumeClaim {
	claim := f.newClaim("reports", f.name)
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	return claim
}

// TestARestoreGetsItsDirectoryWhereverItIs: the other node has the larger disk, and the
// directory is too large to be there twice.
func TestARestoreGetsItsDirectoryWhereverItIs(t *testing.T) {
	f := newAdoptingFleet(t, storagev1.VolumeBindingImmediate)
	dir := f.bring(f.small, 80)
	claim := f.newReports("90Mi")
	f.create(claim)
	f.expectAdopted(claim, f.small, dir)
	f.controller.stop()
}

// TestARestoreOfASelectedNodeStaysThere: docs/migration.md had it so, and it went to the
// other node when there was no room for it to be there twice.
func TestARestoreOfASelectedNodeStaysThere(t *testing.T) {
	f := newAdoptingFleet(t, storagev1.VolumeBindingWaitForFirstConsumer)
	dir := f.bring(f.small, 80)
	claim := f.newReports("80Mi")
	claim.Annotations[selectedNodeKey] = f.small.name
	f.create(claim)
	f.expectAdopted(claim, f.small, dir)
	f.controller.stop()
}

// TestARestoreWithoutItsDirectoryWaits: nobody has it, then two, then one that does not
// answer; and nothing is made.
func TestARestoreWithoutItsDirectoryWaits(t *testing.T) {
	f := newAdoptingFleet(t, storagev1.VolumeBindingImmediate)
	claim := f.newReports("1Mi")
	f.create(claim)
	f.Eventually(func() []string { return f.warnings(claim) }).Should(gomega.ContainElement(gomega.And(
		gomega.ContainSubstring(`existing: "adopt"`), gomega.ContainSubstring("restored/"+f.name+"/reports"),
		gomega.ContainSubstring(f.small.name), gomega.ContainSubstring(f.big.name), gomega.ContainSubstring("none is made"))))
	f.deleteAndWait(claim)

	dir, second := f.bring(f.small, 1), f.bring(f.big, 1)
	claim = f.newReports("1Mi")
	f.create(claim)
	f.Eventually(func() []string { return f.warnings(claim) }).Should(gomega.ContainElement(gomega.And(
		gomega.ContainSubstring("several nodes"), gomega.ContainSubstring(f.small.name), gomega.ContainSubstring(f.big.name))))
	f.deleteAndWait(claim)

	f.big.agent.kill()
	f.ok(os.RemoveAll(second))
	claim = f.newReports("1Mi")
	f.create(claim)
	f.Eventually(func() []string { return f.warnings(claim) }).Should(gomega.ContainElement(gomega.And(
		gomega.ContainSubstring("waiting for all nodes"), gomega.ContainSubstring("agent on node "+f.big.name))))
	if found, _ := filepath.Glob(filepath.Join(f.dir, "*/.berth/volumes/*.json")); len(found) > 0 {
		t.Errorf("there are %v", found)
	}
	f.startAgent(f.big)
	f.expectAdopted(claim, f.small, dir)
	f.controller.stop()
}

// deleteAndWait deletes an object, and waits until its name is free.
func (f *fleet) deleteAndWait(o client.Object) {
	f.t.Helper()
	f.delete(o)
	f.Eventually(func() bool { return f.get(o) }).Should(gomega.BeFalse())
}

// TestPodsFollowWhatTheirClaimsAdopt: kube-scheduler chooses the other node, as that of
// the directory is cordoned, and follows the volume once it may.
func TestPodsFollowWhatTheirClaimsAdopt(t *testing.T) {
	f := newAdoptingFleet(t, storagev1.VolumeBindingWaitForFirstConsumer)
	for _, node := range f.nodes {
		f.schedulable(node)
	}
	f.cordon(f.small, true)
	dir := f.bring(f.small, 1)
	claim := f.newReports("1Mi")
	f.create(claim)
	pod := f.podWith(claim)
	f.create(pod)
	f.expectAdopted(claim, f.small, dir)
	if selected := claim.Annotations[selectedNodeKey]; selected != f.big.name {
		t.Errorf("the node selected first was %q", selected)
	}
	f.Eventually(func() []string { return f.notes(pod, "FailedScheduling") }).Should(gomega.ContainElement(gomega.ContainSubstring("node affinity")))
	if f.get(pod); pod.Spec.NodeName != "" {
		t.Errorf("the pod is on %s", pod.Spec.NodeName)
	}
	f.cordon(f.small, false)
	f.Eventually(func() string { f.get(pod); return pod.Spec.NodeName }).Should(gomega.Equal(f.small.name))
	f.controller.stop()
}

func (f *fleet) cordon(node *agentNode, unschedulable bool) {
	f.t.Helper()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.name}}
	f.get(o)
	before := o.DeepCopy()
	o.Spec.Unschedulable = unschedulable
	f.ok(f.client.Patch(f.t.Context(), o, client.StrategicMergeFrom(before)))
}

// schedulable gives a node room for pods.
func (f *fleet) schedulable(node *agentNode) {
	f.t.Helper()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.name}}
	f.get(o)
	before := o.DeepCopy()
	o.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("10"),
	}
	o.Status.Capacity = o.Status.Allocatable
	f.ok(f.client.Status().Patch(f.t.Context(), o, client.StrategicMergeFrom(before)))
}

// podWith is a pod with a claim, for the nodes of the fleet.
func (f *fleet) podWith(claim *corev1.PersistentVolumeClaim) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: "reader"},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: ptr.To(false),
			Containers:                   []corev1.Container{{Name: "c", Image: "example.com/none"}},
			// Without kubelets the nodes get these taints by and by.
			Tolerations: []corev1.Toleration{
				{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists},
				{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists},
			},
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{
						Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{f.nodes[0].name, f.nodes[1].name},
					}},
				}}},
			}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}}},
		},
	}
}

// TestAnotherNamespaceGetsNothingRestored: of an earlier Berth's class, by which two
// namespaces come to one directory.
func TestAnotherNamespaceGetsNothingRestored(t *testing.T) {
	s := newSite(t)
	const pattern = "restored-${pvc.namespace}-${pvc.name}"
	s.class(s.name, "pathPattern", pattern, "existing", "adopt")
	s.ok(os.Mkdir(filepath.Join(s.pool, ".berth"), 0o700))
	s.ok(os.Mkdir(filepath.Join(s.pool, "restored-"+s.name+"-x-secret"), 0o700)) // of the namespace site-…-x
	p := s.start("")
	claim := s.claim("x-secret")
	s.Eventually(func() []string { return s.warnings(claim) }).Should(gomega.ContainElement(gomega.And(
		gomega.ContainSubstring("StorageClass parameter pathPattern"), gomega.ContainSubstring(pattern),
		gomega.ContainSubstring("restored/${pvc.namespace}/${pvc.name}"))))
	if s.get(claim); claim.Spec.VolumeName != "" || len(s.markers()) > 0 {
		t.Errorf("it has the volume %s, %s", claim.Spec.VolumeName, strings.Join(s.markers(), ", "))
	}
	p.stop()
}
