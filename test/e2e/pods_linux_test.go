package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestVolumeIsOnTheNodeChosenForThePod(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	for _, node := range []string{"node1", "node2"} {
		r.claim(node, "wait", "1Mi")
		r.run(on(node, newPod(node, "echo here >/data/file", ofClaim(node))), corev1.PodSucceeded)
		v := r.volumeOf(node)
		r.Expect(nodeOfVolume(v)).To(Equal(node))
		r.Expect(os.ReadFile(filepath.Join(directory(v), "file"))).To(BeEquivalentTo("here\n"))
	}
}

// TestImmediateVolumeChoosesItsNodeAndThePodFollows: nobody has chosen a node.
func TestImmediateVolumeChoosesItsNodeAndThePodFollows(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "immediate", "1Mi")
	v := r.volumeOf("data")
	r.run(newPod("reader", "test -d /data", ofClaim("data")), corev1.PodSucceeded)
	r.Expect(r.nodeOf("reader")).To(Equal(nodeOfVolume(v)))
}

func TestNonRootPodWritesThroughItsGroup(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "wait", "1Mi")
	pod := newPod("writer", "echo mine >/data/file && stat -c %u:%g /data/file", ofClaim("data"))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsUser:      ptr.To[int64](1000),
		RunAsGroup:     ptr.To[int64](1000),
		RunAsNonRoot:   ptr.To(true),
		FSGroup:        ptr.To[int64](2000),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	r.run(pod, corev1.PodSucceeded)
	r.Expect(r.kubectl("logs", "writer")).To(Equal("1000:2000\n"))
}

func TestDataOutlivesContainerAndPod(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "wait", "1Mi")
	// The first container ends with an error after it has written.
	pod := newPod("first", "test -e /data/file && exit 0; echo kept >/data/file; exit 1", ofClaim("data"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	r.run(pod, corev1.PodSucceeded)
	r.deletePods("first")
	r.run(newPod("second", "cat /data/file", ofClaim("data")), corev1.PodSucceeded)
	r.Expect(r.kubectl("logs", "second")).To(Equal("kept\n"))
}

func TestEphemeralVolumeGoesWithItsPod(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.run(newPod("scratch", "echo x >/data/file; "+wait, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: claimSpec("wait", "1Mi")},
	}}), corev1.PodRunning)
	v := r.volumeOf("scratch-data")
	r.Expect(directory(v)).To(BeADirectory())
	r.deletePods("scratch")
	r.Eventually(removed(t.Context(), v)).Should(Succeed())
}

func TestDeletedClaimTakesItsDirectoryAlong(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "wait", "1Mi")
	r.run(newPod("writer", "mkdir -p /data/a/b && echo x >/data/a/b/file && chmod 0 /data/a", ofClaim("data")), corev1.PodSucceeded)
	v := r.volumeOf("data")
	// The claim waits for the pod.
	r.kubectl("delete", "pvc", "data", "--wait=false")
	r.Consistently(directory(v), "1s").Should(BeADirectory())
	r.deletePods("writer")
	r.Eventually(removed(t.Context(), v)).Should(Succeed())
}

func TestRetainedVolumeStaysUntilItsPolicyChanges(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "retain", "1Mi")
	r.run(newPod("writer", "echo kept >/data/file", ofClaim("data")), corev1.PodSucceeded)
	v := r.volumeOf("data")
	r.deletePods("writer")
	r.kubectl("delete", "pvc", "data")
	r.Eventually(func() (corev1.PersistentVolumePhase, error) {
		now, err := shared.Client().CoreV1().PersistentVolumes().Get(t.Context(), v.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return now.Status.Phase, nil
	}).Should(Equal(corev1.VolumeReleased))
	r.Expect(os.ReadFile(filepath.Join(directory(v), "file"))).To(BeEquivalentTo("kept\n"))
	r.patchVolume(v.Name, `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	r.Eventually(removed(t.Context(), v)).Should(Succeed())
}

func TestExpansionWithAndWithoutAPod(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("used", "wait", "1Mi")
	r.claim("unused", "wait", "1Mi")
	r.run(newPod("user", "echo kept >/data/file; "+wait, ofClaim("used")), corev1.PodRunning)
	r.run(newPod("passer-by", "true", ofClaim("unused")), corev1.PodSucceeded)
	r.deletePods("passer-by")
	for _, claim := range []string{"used", "unused"} {
		r.kubectl("patch", "pvc", claim, "--patch", `{"spec":{"resources":{"requests":{"storage":"3Mi"}}}}`)
		r.Eventually(func() string {
			c := r.read(claim)
			return c.Status.Capacity.Storage().String()
		}).Should(Equal("3Mi"), "capacity of claim %s", claim)
		r.Expect(r.read(claim).Status.Conditions).NotTo(ContainElement(
			HaveField("Type", BeElementOf(corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimFileSystemResizePending))))
		r.Expect(r.volumeOf(claim).Spec.Capacity.Storage().String()).To(Equal("3Mi"))
	}
	r.Expect(r.exec("user", "cat /data/file")).To(Equal("kept\n"))
}

// TestVolumeDeletedByForce: somebody deletes a PersistentVolume in use, finalizers
// and all. The pod goes on, nothing hangs afterwards, and no data is removed.
func TestVolumeDeletedByForce(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.claim("data", "wait", "1Mi")
	r.run(newPod("user", "echo kept >/data/file; "+wait, ofClaim("data")), corev1.PodRunning)
	v := r.volumeOf("data")
	r.kubectl("delete", "pv", v.Name, "--wait=false")
	r.patchVolume(v.Name, `{"metadata":{"finalizers":null}}`)
	r.Eventually(r.claimPhase("data")).Should(Equal(corev1.ClaimLost))
	r.Expect(r.exec("user", "cat /data/file; echo more >>/data/file")).To(Equal("kept\n"))
	r.deletePods("user")
	r.kubectl("delete", "pvc", "data", "--timeout=20s")
	r.Expect(os.ReadFile(filepath.Join(directory(v), "file"))).To(BeEquivalentTo("kept\nmore\n"))
	r.Expect(os.RemoveAll(directory(v))).To(Succeed())
}

func TestStatefulSetGivesEachReplicaItsVolumeBack(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.apply(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: busybox:berth-test
        command: [sh, -c, "hostname >>/data/names; ` + wait + `"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      storageClassName: wait
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 1Mi}}
`)
	r.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
	r.kubectl("scale", "statefulset/db", "--replicas=0")
	r.Eventually(func() ([]corev1.Pod, error) {
		pods, err := shared.Client().CoreV1().Pods(r.name).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		return pods.Items, nil
	}).Should(BeEmpty())
	r.kubectl("scale", "statefulset/db", "--replicas=3")
	r.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
	for _, name := range []string{"db-0", "db-1", "db-2"} {
		r.Expect(os.ReadFile(filepath.Join(directory(r.volumeOf("data-"+name)), "names"))).To(BeEquivalentTo(name + "\n" + name + "\n"))
	}
}
