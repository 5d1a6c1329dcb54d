package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/test/cluster"
)

// These tests take nodes away, so none of them is parallel.

func TestDrainedNodeKeepsItsVolumesAndGetsNoNewOnes(t *testing.T) {
	r := newRoom(t)
	r.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: node1}
      containers:
      - name: main
        image: busybox:berth-test
        command: [sh, -c, "echo start >>/data/file; ` + wait + `"]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: app}}]
`)
	r.claim("app", "wait", "1Mi")
	r.claim("idle", "wait", "1Mi")
	r.run(on("node1", newPod("idle", "true", ofClaim("idle"))), corev1.PodSucceeded)
	r.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
	app, idle := r.volumeOf("app"), r.volumeOf("idle")

	r.kubectl("drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
	t.Cleanup(func() {
		_, _ = shared.Kubectl(context.WithoutCancel(t.Context()), nil, "uncordon", "node1")
	})
	r.claim("new", "immediate", "1Mi")
	r.Expect(nodeOfVolume(r.volumeOf("new"))).To(Equal("node2"))
	r.kubectl("delete", "pvc", "idle")
	r.Eventually(removed(t.Context(), idle)).Should(Succeed())
	r.Expect(directory(app)).To(BeADirectory())

	r.kubectl("uncordon", "node1")
	r.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
	r.Expect(os.ReadFile(filepath.Join(directory(app), "file"))).To(BeEquivalentTo("start\nstart\n"))
}

func TestNodeThatIsDownIsWaitedFor(t *testing.T) {
	r := newRoom(t)
	r.claim("kept", "wait", "1Mi")
	r.claim("given-up", "wait", "1Mi")
	for _, name := range []string{"kept", "given-up"} {
		r.run(on("node2", newPod(name, "echo here >/data/file", ofClaim(name))), corev1.PodSucceeded)
	}
	kept, givenUp := r.volumeOf("kept"), r.volumeOf("given-up")
	r.deletePods("kept", "given-up")

	node := shared.Node("node2")
	r.powerOff(node)
	r.kubectl("delete", "pvc", "given-up")
	// Others go on.
	r.claim("new", "immediate", "1Mi")
	r.Expect(nodeOfVolume(r.volumeOf("new"))).To(Equal("node1"))
	r.claim("on-node1", "wait", "1Mi")
	r.run(newPod("on-node1", "true", ofClaim("on-node1")), corev1.PodSucceeded)
	_, err := shared.Client().CoreV1().PersistentVolumes().Get(t.Context(), givenUp.Name, metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred(), "the volume of a node that is down")

	r.powerOn(node)
	r.Eventually(removed(t.Context(), givenUp)).Should(Succeed())
	r.Expect(os.ReadFile(filepath.Join(directory(kept), "file"))).To(BeEquivalentTo("here\n"))
}

func TestVolumesOfADeletedNodeAreDroppedOrReported(t *testing.T) {
	r := newRoom(t)
	r.claim("bound", "wait", "1Mi")
	r.claim("released", "wait", "1Mi")
	for _, name := range []string{"bound", "released"} {
		r.run(on("node2", newPod(name, "echo here >/data/file", ofClaim(name))), corev1.PodSucceeded)
	}
	bound, released := r.volumeOf("bound"), r.volumeOf("released")
	r.deletePods("bound", "released")

	node := shared.Node("node2")
	r.powerOff(node)
	r.kubectl("delete", "pvc", "released")
	r.kubectl("delete", "node", "node2")
	r.Eventually(func() bool {
		_, err := shared.Client().CoreV1().PersistentVolumes().Get(t.Context(), released.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}).Should(BeTrue(), "the released volume of a deleted node is dropped")
	r.Eventually(r.events("bound")).Should(ContainElement(ContainSubstring("node2")))
	r.Expect(r.claimPhase("bound")()).To(Equal(corev1.ClaimBound))

	r.powerOn(node)
	r.Expect(os.ReadFile(filepath.Join(directory(bound), "file"))).To(BeEquivalentTo("here\n"))
	// What a dropped volume has left on a disk that comes back is for people to look at.
	r.Expect(os.ReadFile(filepath.Join(directory(released), "file"))).To(BeEquivalentTo("here\n"))
	r.Expect(os.RemoveAll(directory(released))).To(Succeed())
}

// powerOff ends a node and waits until the cluster has noticed. The test ends
// with the node on again. One of the controllers is on another node, and may be the one
// that has to take over.
func (r room) powerOff(node *cluster.Node) {
	r.t.Helper()
	r.spreadControllers()
	r.Expect(node.PowerOff()).To(Succeed())
	r.t.Cleanup(func() {
		if !node.On() {
			r.powerOn(node)
		}
	})
	r.Eventually(func(g Gomega) {
		object, err := shared.Client().CoreV1().Nodes().Get(r.t.Context(), node.Name(), metav1.GetOptions{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(object.Spec.Taints).To(ContainElement(HaveField("Key", corev1.TaintNodeUnreachable)))
	}).Should(Succeed())
}

// spreadControllers brings the controllers back to a node each, where an earlier
// test has driven them together.
func (r room) spreadControllers() {
	r.t.Helper()
	r.Eventually(func(g Gomega) {
		pods, err := shared.Client().CoreV1().Pods(berthNamespace).List(r.t.Context(),
			metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(pods.Items).To(HaveLen(2))
		g.Expect(pods.Items).To(HaveEach(HaveField("Status.Conditions", ContainElement(
			And(HaveField("Type", corev1.PodReady), HaveField("Status", corev1.ConditionTrue))))))
		together := pods.Items[0].Spec.NodeName == pods.Items[1].Spec.NodeName
		if together {
			g.Expect(shared.Client().CoreV1().Pods(berthNamespace).Delete(r.t.Context(), pods.Items[0].Name, metav1.DeleteOptions{})).To(Succeed())
		}
		g.Expect(together).To(BeFalse(), "both controllers are on one node")
	}).Should(Succeed())
}

func (r room) powerOn(node *cluster.Node) {
	r.t.Helper()
	ctx := context.WithoutCancel(r.t.Context()) // also while cleaning up
	r.Expect(node.Start(ctx)).To(Succeed())
	r.Expect(mountPools(ctx, node)).To(Succeed())
	_, err := shared.Kubectl(ctx, nil, "--namespace="+berthNamespace, "rollout", "status", "daemonset/berth-agent", "--timeout=60s")
	r.Expect(err).NotTo(HaveOccurred())
}
