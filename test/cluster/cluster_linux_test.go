package cluster_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServiceLeadsToPodOnTheOtherNode(t *testing.T) {
	needCluster(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
  - name: server
    image: busybox:berth-test
    command: [sh, -c, "while true; do echo hello | nc -l -p 8080; done"]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {clusterIP: None, selector: {app: server}, ports: [{port: 8080}]}
`)
	g := NewWithT(t)
	var address string
	g.Eventually(func(g Gomega) {
		slices, err := shared.Client().DiscoveryV1().EndpointSlices("default").List(t.Context(),
			metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=server"})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(slices.Items).To(HaveLen(1))
		g.Expect(slices.Items[0].Endpoints).To(HaveLen(1))
		g.Expect(slices.Items[0].Endpoints[0].Conditions.Ready).To(HaveValue(BeTrue()))
		address = slices.Items[0].Endpoints[0].Addresses[0]
	}).Should(Succeed())
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node2
  restartPolicy: Never
  containers:
  - {name: client, image: "busybox:berth-test", command: [nc, %q, "8080"]}
`, address))
	g.Eventually(phaseOf(t, "client")).Should(Equal(corev1.PodSucceeded))
	g.Expect(kubectl(t, "logs", "client")).To(Equal("hello\n"))
	g.Expect(kubectl(t, "exec", "server", "--", "hostname")).To(Equal("server\n"))
}

func TestPodReachesAPIServerWithItsServiceAccount(t *testing.T) {
	needCluster(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  restartPolicy: Never
  containers:
  - name: caller
    image: busybox:berth-test
    command: [sh, -c]
    args:
    - |
      cd /var/run/secrets/kubernetes.io/serviceaccount
      test -s token && test -s ca.crt || exit 1
      printf 'GET / HTTP/1.0\r\n\r\n' | nc $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT
`)
	g := NewWithT(t)
	g.Eventually(phaseOf(t, "caller")).Should(Equal(corev1.PodSucceeded))
	g.Expect(kubectl(t, "logs", "caller")).To(ContainSubstring("HTTP request to an HTTPS server"))
}

// TestLocalVolumeIsTheNodesOwn: /mnt is another folder on each node.
func TestLocalVolumeIsTheNodesOwn(t *testing.T) {
	needCluster(t)
	g := NewWithT(t)
	g.Expect(os.Mkdir(shared.Node("node2").Path("/mnt/by-hand"), 0o770)).To(Succeed())
	apply(t, `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: by-hand}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: by-hand}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: by-hand
  persistentVolumeReclaimPolicy: Retain
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node2]}]}]}}
  local: {path: /mnt/by-hand}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: by-hand}
spec:
  storageClassName: by-hand
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: by-hand}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  containers:
  - name: writer
    image: busybox:berth-test
    command: [sh, -c, "echo from $(hostname) >/data/file"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: by-hand}}]
`)
	g.Eventually(phaseOf(t, "by-hand")).Should(Equal(corev1.PodSucceeded))
	g.Expect(os.ReadFile(shared.Node("node2").Path("/mnt/by-hand/file"))).To(BeEquivalentTo("from by-hand\n"))
	g.Expect(shared.Node("node1").Path("/mnt/by-hand")).NotTo(BeAnExistingFile())
}

// TestNodeComesBackWithItsDisk: even when its Node object was deleted and pods ran
// on it.
func TestNodeComesBackWithItsDisk(t *testing.T) {
	needCluster(t)
	g := NewWithT(t)
	node := shared.Node("node1")
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: before}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers: [{name: before, image: "busybox:berth-test", command: [sleep, "3600"]}]
`)
	g.Eventually(phaseOf(t, "before")).Should(Equal(corev1.PodRunning))
	g.Expect(os.WriteFile(node.Path("/mnt/kept"), []byte("before"), 0o600)).To(Succeed())
	g.Expect(node.PowerOff()).To(Succeed())
	g.Eventually(func(g Gomega) {
		object, err := shared.Client().CoreV1().Nodes().Get(t.Context(), "node1", metav1.GetOptions{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(object.Spec.Taints).To(ContainElement(HaveField("Key", corev1.TaintNodeUnreachable)))
	}).Should(Succeed())
	kubectl(t, "delete", "node", "node1")
	g.Expect(node.Start(t.Context())).To(Succeed())
	g.Expect(os.ReadFile(node.Path("/mnt/kept"))).To(BeEquivalentTo("before"))
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: after}
spec:
  nodeName: node1
  restartPolicy: Never
  tolerations: [{operator: Exists}]
  containers: [{name: after, image: "busybox:berth-test", command: ["true"]}]
`)
	g.Eventually(phaseOf(t, "after")).Should(Equal(corev1.PodSucceeded))
}

// apply makes the objects of a manifest and deletes them with the test.
func apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := shared.Kubectl(t.Context(), strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := shared.Kubectl(context.Background(), strings.NewReader(manifest), "delete", "--ignore-not-found", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := shared.Kubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// phaseOf returns a function that reads a pod's phase, "" when there is no pod.
func phaseOf(t *testing.T, pod string) func() (corev1.PodPhase, error) {
	return func() (corev1.PodPhase, error) {
		p, err := shared.Client().CoreV1().Pods("default").Get(t.Context(), pod, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		return p.Status.Phase, nil
	}
}
