package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/berth-storage/berth/test/cluster/images"
)

// room is a namespace of one test, which goes with it.
type room struct {
	*WithT
	t    *testing.T
	name string
}

// newRoom makes a namespace with room for a test, or skips the test with the
// reason.
func newRoom(t *testing.T) room {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
	r := room{WithT: NewWithT(t), t: t}
	ns, err := shared.Client().CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	r.name = ns.Name
	t.Cleanup(func() {
		if t.Failed() {
			report, _ := shared.Kubectl(context.Background(), nil, "--namespace="+r.name, "get", "pods,claims,events", "-o", "wide")
			t.Log(report)
		}
		err := shared.Client().CoreV1().Namespaces().Delete(context.Background(), r.name, metav1.DeleteOptions{})
		r.Expect(err).NotTo(HaveOccurred())
	})
	r.Eventually(func() error {
		_, err := shared.Client().CoreV1().ServiceAccounts(r.name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	}).Should(Succeed())
	return r
}

// claim makes a claim.
func (r room) claim(name, class, size string) {
	r.t.Helper()
	_, err := shared.Client().CoreV1().PersistentVolumeClaims(r.name).Create(r.t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       claimSpec(class, size),
	}, metav1.CreateOptions{})
	r.Expect(err).NotTo(HaveOccurred())
}

func claimSpec(class, size string) corev1.PersistentVolumeClaimSpec {
	return corev1.PersistentVolumeClaimSpec{
		StorageClassName: ptr.To(class),
		AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		},
	}
}

// wait is a command that ends as soon as it is asked to.
const wait = "trap 'exit 0' TERM; while true; do sleep 3600 & wait $!; done"

// newPod returns a pod that runs a shell command, with a volume at /data.
func newPod(name, command string, volume corev1.VolumeSource) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			AutomountServiceAccountToken:  ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To[int64](5),
			Containers: []corev1.Container{{
				Name:         "main",
				Image:        images.Busybox,
				Command:      []string{"sh", "-c", command},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: volume}},
		},
	}
}

// ofClaim is the volume of a claim.
func ofClaim(name string) corev1.VolumeSource {
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
}

// on makes kube-scheduler choose a node.
func on(node string, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	return pod
}

// run makes a pod and waits until it is in a phase.
func (r room) run(pod *corev1.Pod, phase corev1.PodPhase) {
	r.t.Helper()
	r.make(pod)
	r.Eventually(r.phase(pod.Name)).Should(Equal(phase), "phase of pod %s", pod.Name)
}

func (r room) make(pod *corev1.Pod) {
	r.t.Helper()
	_, err := shared.Client().CoreV1().Pods(r.name).Create(r.t.Context(), pod, metav1.CreateOptions{})
	r.Expect(err).NotTo(HaveOccurred())
}

func (r room) phase(pod string) func() (corev1.PodPhase, error) {
	return func() (corev1.PodPhase, error) {
		p, err := shared.Client().CoreV1().Pods(r.name).Get(r.t.Context(), pod, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return p.Status.Phase, nil
	}
}

// nodeOf returns the node a pod is on.
func (r room) nodeOf(pod string) string {
	r.t.Helper()
	p, err := shared.Client().CoreV1().Pods(r.name).Get(r.t.Context(), pod, metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	return p.Spec.NodeName
}

// read returns a claim as it is.
func (r room) read(claim string) *corev1.PersistentVolumeClaim {
	r.t.Helper()
	c, err := shared.Client().CoreV1().PersistentVolumeClaims(r.name).Get(r.t.Context(), claim, metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	return c
}

// claimPhase returns a function that reads a claim's phase.
func (r room) claimPhase(claim string) func() (corev1.PersistentVolumeClaimPhase, error) {
	return func() (corev1.PersistentVolumeClaimPhase, error) {
		c, err := shared.Client().CoreV1().PersistentVolumeClaims(r.name).Get(r.t.Context(), claim, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return c.Status.Phase, nil
	}
}

// volumeOf waits until a claim is Bound and returns its volume.
func (r room) volumeOf(claim string) *corev1.PersistentVolume {
	r.t.Helper()
	r.Eventually(r.claimPhase(claim)).Should(Equal(corev1.ClaimBound))
	v, err := shared.Client().CoreV1().PersistentVolumes().Get(r.t.Context(), r.read(claim).Spec.VolumeName, metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	return v
}

// deletePods deletes pods and waits until they are gone.
func (r room) deletePods(names ...string) {
	r.t.Helper()
	r.kubectl(append([]string{"delete", "pod"}, names...)...)
}

func (r room) kubectl(args ...string) string {
	r.t.Helper()
	out, err := shared.Kubectl(r.t.Context(), nil, append([]string{"--namespace=" + r.name}, args...)...)
	r.Expect(err).NotTo(HaveOccurred())
	return out
}

// exec runs a shell command in a pod and returns its output.
func (r room) exec(pod, command string) string {
	r.t.Helper()
	return r.kubectl("exec", pod, "--", "sh", "-c", command)
}

// events returns the events about an object, as "reason: message".
func (r room) events(name string) func() ([]string, error) {
	return func() ([]string, error) {
		list, err := shared.Client().CoreV1().Events(r.name).List(r.t.Context(),
			metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return nil, err
		}
		var texts []string
		for _, e := range list.Items {
			texts = append(texts, e.Reason+": "+e.Message)
		}
		return texts, nil
	}
}

// nodeOfVolume returns the node that a volume is tied to.
func nodeOfVolume(v *corev1.PersistentVolume) string {
	return v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]
}

// directory returns where a volume's directory is for this process.
func directory(v *corev1.PersistentVolume) string {
	return shared.Node(nodeOfVolume(v)).Path(v.Spec.Local.Path)
}

// removed is an error while a volume or its directory is there.
func removed(ctx context.Context, v *corev1.PersistentVolume) func() error {
	return func() error {
		if _, err := shared.Client().CoreV1().PersistentVolumes().Get(ctx, v.Name, metav1.GetOptions{}); err == nil {
			return fmt.Errorf("volume %s is there", v.Name)
		} else if !apierrors.IsNotFound(err) {
			return err
		}
		if _, err := os.Stat(directory(v)); err == nil {
			return fmt.Errorf("directory of %s is there", v.Name)
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
}

// patch merges a JSON text into a volume.
func (r room) patchVolume(name, text string) {
	r.t.Helper()
	_, err := shared.Client().CoreV1().PersistentVolumes().Patch(r.t.Context(), name, types.MergePatchType, []byte(text), metav1.PatchOptions{})
	r.Expect(err).NotTo(HaveOccurred())
}

// checkNothingIsLeft waits until no volume is left after all tests, and neither is
// a directory in any pool.
func checkNothingIsLeft(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		left, err := leftovers(ctx)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left after all tests: %s", strings.Join(left, ", "))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func leftovers(ctx context.Context) ([]string, error) {
	volumes, err := shared.Client().CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var left []string
	for _, v := range volumes.Items {
		left = append(left, "volume "+v.Name)
	}
	for _, node := range shared.Nodes() {
		for _, pool := range []string{"/var/lib/berth", "/mnt/sized", "/mnt/quota"} {
			entries, err := os.ReadDir(node.Path(pool))
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if e.Name() != ".berth" && e.Name() != "lost+found" {
					left = append(left, filepath.Join(node.Name(), pool, e.Name()))
				}
			}
		}
	}
	return left, nil
}

// apply makes the objects of a manifest.
func (r room) apply(manifest string) {
	r.t.Helper()
	_, err := shared.Kubectl(r.t.Context(), strings.NewReader(manifest), "--namespace="+r.name, "apply", "-f", "-")
	r.Expect(err).NotTo(HaveOccurred())
}
