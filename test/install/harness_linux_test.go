package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-storage/berth/test/cluster"
	"github.com/berth-storage/berth/test/controlplane"
)

// user is somebody with every right, at the cluster, and their namespace.
type user struct {
	*WithT
	t          *testing.T
	kubeconfig string
	root       string
	name       string // of the namespace
}

// newUser returns one with an empty namespace, or skips the test with the reason.
func newUser(t *testing.T, name string) user {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
	u := user{WithT: NewWithT(t), t: t, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), name: name}
	u.Expect(shared.ControlPlane().WriteKubeconfig(u.kubeconfig, "admin", "system:masters")).To(Succeed())
	var err error
	u.root, err = controlplane.RepositoryRoot()
	u.Expect(err).NotTo(HaveOccurred())
	u.kubectl("create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			u.report()
		}
	})
	return u
}

// report logs how things are after a failure.
func (u user) report() {
	for _, args := range [][]string{
		{"get", "pods,claims,volumes,storageclasses", "--all-namespaces", "-o", "wide"},
		{"get", "events", "--all-namespaces"},
		{"--namespace=" + namespace, "logs", "--prefix", "--tail=30", "--selector=app.kubernetes.io/name=berth"},
	} {
		out, err := shared.Kubectl(context.Background(), nil, args...)
		u.t.Log(out, err)
	}
}

// helm runs helm in Berth's namespace and returns what it prints.
func (u user) helm(args ...string) string {
	u.t.Helper()
	cmd := exec.CommandContext(u.t.Context(), os.Getenv(helmEnv), append([]string{"--namespace=" + namespace}, args...)...)
	home := filepath.Dir(u.kubeconfig)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+u.kubeconfig, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	u.Expect(err).NotTo(HaveOccurred(), "helm %s: %s%s", strings.Join(args, " "), &stderr, &stdout)
	return stdout.String()
}

func (u user) chart() string { return filepath.Join(u.root, "charts", "berth") }

func (u user) kubectl(args ...string) string {
	u.t.Helper()
	out, err := shared.Kubectl(u.t.Context(), nil, args...)
	u.Expect(err).NotTo(HaveOccurred())
	return out
}

// apply makes objects in the user's namespace.
func (u user) apply(manifest string) {
	u.t.Helper()
	_, err := shared.Kubectl(u.t.Context(), strings.NewReader(manifest), "--namespace="+u.name, "apply", "-f", "-")
	u.Expect(err).NotTo(HaveOccurred())
}

func (u user) api() kubernetes.Interface { return shared.Client() }

func claim(name, class string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  storageClassName: %s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
`, name, class)
}

// writer is a pod that writes to the volume of the claim of its own name, and says
// so, again and again.
func writer(name string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:berth-test
    command: [sh, -c, "trap 'exit 0' TERM; while echo line >>/data/file; do sleep 0.2; done"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
`, name, name)
}

// immediate is a class of nobody's release.
const immediate = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: immediate}
provisioner: hostpath.berth.storage
volumeBindingMode: Immediate
`

// expectBound waits until a claim is Bound and returns its volume.
func (u user) expectBound(name string) *corev1.PersistentVolume {
	u.t.Helper()
	u.Eventually(func() (corev1.PersistentVolumeClaimPhase, error) {
		c, err := u.api().CoreV1().PersistentVolumeClaims(u.name).Get(u.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return c.Status.Phase, nil
	}).Should(Equal(corev1.ClaimBound), "claim %s", name)
	c, err := u.api().CoreV1().PersistentVolumeClaims(u.name).Get(u.t.Context(), name, metav1.GetOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	v, err := u.api().CoreV1().PersistentVolumes().Get(u.t.Context(), c.Spec.VolumeName, metav1.GetOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	return v
}

// expectWriting waits until a writer has written twice more, and has never been
// started again.
func (u user) expectWriting(name string, v *corev1.PersistentVolume) {
	u.t.Helper()
	before := u.size(v)
	u.Eventually(func() int64 { return u.size(v) }).Should(BeNumerically(">", before+5), "what pod %s has written", name)
	pod, err := u.api().CoreV1().Pods(u.name).Get(u.t.Context(), name, metav1.GetOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	u.Expect(pod.Status.ContainerStatuses[0].RestartCount).To(BeZero())
}

func (u user) size(v *corev1.PersistentVolume) int64 {
	info, err := os.Stat(filepath.Join(directory(v), "file"))
	if err != nil {
		return -1
	}
	return info.Size()
}

// directory returns where a volume's directory is for this process.
func directory(v *corev1.PersistentVolume) string {
	node := v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]
	return shared.Node(node).Path(v.Spec.Local.Path)
}

// expectGone waits until a volume and its directory are gone.
func (u user) expectGone(v *corev1.PersistentVolume) {
	u.t.Helper()
	u.Eventually(func() bool {
		_, err := u.api().CoreV1().PersistentVolumes().Get(u.t.Context(), v.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}).Should(BeTrue(), "volume %s is removed", v.Name)
	u.Eventually(func() string { return directory(v) }).ShouldNot(BeADirectory())
}

// rollout waits until Berth's pods are those of the last change, and ready.
func (u user) rollout() {
	u.t.Helper()
	for _, workload := range []string{"daemonset/berth-agent", "deployment/berth-controller"} {
		u.kubectl("--namespace="+namespace, "rollout", "status", workload, "--timeout=90s")
	}
}

// leader returns the pod that holds the Lease.
func (u user) leader() *corev1.Pod {
	u.t.Helper()
	var pod *corev1.Pod
	u.Eventually(func() error {
		lease, err := u.api().CoordinationV1().Leases(namespace).Get(u.t.Context(), "berth.storage", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil {
			return fmt.Errorf("nobody holds the Lease")
		}
		pod, err = u.api().CoreV1().Pods(namespace).Get(u.t.Context(), *lease.Spec.HolderIdentity, metav1.GetOptions{})
		return err
	}).Should(Succeed())
	return pod
}

// process returns the node of a pod's only container, and its process there.
func (u user) process(pod *corev1.Pod) (*cluster.Node, string) {
	u.t.Helper()
	node := shared.Node(pod.Spec.NodeName)
	_, container, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	tasks, err := node.Command(u.t.Context(), "ctr", "--namespace=k8s.io", "tasks", "list").Output()
	u.Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(string(tasks)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == container {
			return node, fields[1]
		}
	}
	u.t.Fatalf("container of pod %s is not among\n%s", pod.Name, tasks)
	return nil, ""
}
