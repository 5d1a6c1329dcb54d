package controlplane_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	storageWritesPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  verbs: [create, update, patch, delete]
  resources:
  - group: ""
    resources: [persistentvolumes, persistentvolumes/status, persistentvolumeclaims, persistentvolumeclaims/status]
`
)

// shared is the control plane of all tests that need no other.
var shared *controlplane.ControlPlane

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		beVictim()
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	shared, err = controlplane.Start(context.Background(), controlplane.Options{
		ControllerManager: true,
		Scheduler:         true,
		AuditPolicy:       storageWritesPolicy,
		Output:            os.Stderr,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the control plane:", err)
		return 1
	}
	code := m.Run()
	if err := shared.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the control plane:", err)
		return 1
	}
	return code
}

func TestControllerManagerBindsStaticVolume(t *testing.T) {
	client := clientFor(t, shared.Config())
	bindStaticVolume(t, client, "static")
}

func TestControllerManagerBindsAfterRestart(t *testing.T) {
	client := clientFor(t, shared.Config())
	p := shared.ControllerManager()
	before := p.PID()
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := p.PID(); after == 0 || after == before {
		t.Errorf("process id %d after the restart, %d before it", after, before)
	}
	bindStaticVolume(t, client, "restarted")
}

func TestKilledControllerManagerCatchesUp(t *testing.T) {
	client := clientFor(t, shared.Config())
	p := shared.ControllerManager()
	createVolume(t, client, "unbound")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("still running after Kill")
	}
	createClaim(t, client, "unbound")
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitBound(t, client, "unbound")
	if err := p.Start(t.Context()); err == nil {
		t.Error("a second Start of a running process succeeded")
	}
}

func TestAuditLogNamesTheBinder(t *testing.T) {
	client := clientFor(t, shared.Config())
	bindStaticVolume(t, client, "audited")
	// The binder's user depends on --use-service-account-credentials, as in production.
	const binder = "system:serviceaccount:kube-system:persistent-volume-binder"
	var seen []string
	for event, err := range controlplane.ReadAudit(shared.AuditLogPath()) {
		if err != nil {
			t.Fatal(err)
		}
		if event.ObjectRef.Name != "audited" || event.User.Username != binder {
			continue
		}
		seen = append(seen, event.Verb+" "+event.ObjectRef.Resource+"/"+event.ObjectRef.Subresource)
		if event.RequestObject == nil || len(event.RequestObject.Raw) == 0 {
			t.Errorf("%s of %s without the request's object", event.Verb, event.ObjectRef.Resource)
		}
	}
	if len(seen) == 0 {
		t.Errorf("no request by %s in %s", binder, shared.AuditLogPath())
	}
}

func TestUserWithoutRolesIsForbidden(t *testing.T) {
	config, err := shared.User("nobody-in-particular", "some-group")
	if err != nil {
		t.Fatal(err)
	}
	_, err = clientFor(t, config).CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("List = %v, want forbidden", err)
	}
}

func TestStorageAdmissionIsOn(t *testing.T) {
	client := clientFor(t, shared.Config())
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "the-default",
			Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"},
		},
		Provisioner: "nobody.example.com",
	}
	if _, err := client.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// The plugin reads classes from an informer, which may lag behind.
	await(t, func(ctx context.Context) (bool, error) {
		claim := newClaim("classless", nil)
		claim.Name, claim.GenerateName = "", "classless-"
		created, err := client.CoreV1().PersistentVolumeClaims("default").Create(ctx, claim, metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		if !slices.Contains(created.Finalizers, "kubernetes.io/pvc-protection") {
			t.Errorf("finalizers %q: StorageObjectInUseProtection is off", created.Finalizers)
		}
		return created.Spec.StorageClassName != nil && *created.Spec.StorageClassName == class.Name, nil
	})
}

func TestSchedulerPicksNodeForWaitingClaim(t *testing.T) {
	client := clientFor(t, shared.Config())
	createReadyNode(t, client, "node-1")
	binding := storagev1.VolumeBindingWaitForFirstConsumer
	class := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: "waiting"},
		Provisioner:       "nobody.example.com",
		VolumeBindingMode: &binding,
	}
	if _, err := client.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	claims := client.CoreV1().PersistentVolumeClaims("default")
	if _, err := claims.Create(t.Context(), newClaim("waiting", &class.Name), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "consumer"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "example.com/none"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "waiting"},
			}}},
		},
	}
	if _, err := client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func(ctx context.Context) (bool, error) {
		claim, err := claims.Get(ctx, "waiting", metav1.GetOptions{})
		return err == nil && claim.Annotations["volume.kubernetes.io/selected-node"] == "node-1", err
	})
}

func TestQueuesOfControllerManagerAreSeen(t *testing.T) {
	for _, queue := range []string{"volumes", "claims"} {
		if depth, err := shared.QueueDepth(t.Context(), queue); err != nil || depth < 0 {
			t.Errorf("QueueDepth(%q) = %d, %v", queue, depth, err)
		}
	}
	if depth, err := shared.QueueDepth(t.Context(), "no-such-queue"); err == nil {
		t.Errorf("a queue that is not there has depth %d", depth)
	}
}

func TestRequestCountsSeeEveryRequest(t *testing.T) {
	client := clientFor(t, shared.Config())
	key := controlplane.RequestKey{Verb: "GET", Resource: "csidrivers"}
	before, err := shared.RequestCounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const requests = 7
	for range requests {
		_, err := client.StorageV1().CSIDrivers().Get(t.Context(), "none", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			t.Fatalf("Get = %v, want not found", err)
		}
	}
	after, err := shared.RequestCounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := after[key] - before[key]; got != requests {
		t.Errorf("%v more requests of %+v, want %d", got, key, requests)
	}
}

// createReadyNode adds a node without a kubelet, which is Ready until
// kube-controller-manager misses its heartbeats.
func createReadyNode(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	nodes := client.CoreV1().Nodes()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
		},
	}
	if _, err := nodes.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func clientFor(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func bindStaticVolume(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	createVolume(t, client, name)
	createClaim(t, client, name)
	awaitBound(t, client, name)
}

var (
	capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes    = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
)

// createVolume creates a volume that only the claim of createClaim with the same
// name fits, and waits until it is available: kube-controller-manager would look
// at a claim that comes earlier only at its next resync.
func createVolume(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      capacity,
			AccessModes:                   modes,
			StorageClassName:              "static-" + name,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/nowhere"}},
		},
	}
	volumes := client.CoreV1().PersistentVolumes()
	if _, err := volumes.Create(t.Context(), volume, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func(ctx context.Context) (bool, error) {
		v, err := volumes.Get(ctx, name, metav1.GetOptions{})
		return err == nil && v.Status.Phase == corev1.VolumeAvailable, err
	})
}

func createClaim(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	class := "static-" + name
	claim := newClaim(name, &class)
	if _, err := client.CoreV1().PersistentVolumeClaims("default").Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func newClaim(name string, class *string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      modes,
			StorageClassName: class,
			Resources:        corev1.VolumeResourceRequirements{Requests: capacity},
		},
	}
}

func awaitBound(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	var last *corev1.PersistentVolumeClaim
	await(t, func(ctx context.Context) (bool, error) {
		var err error
		last, err = client.CoreV1().PersistentVolumeClaims("default").Get(ctx, name, metav1.GetOptions{})
		return err == nil && last.Status.Phase == corev1.ClaimBound, err
	})
	if last.Spec.VolumeName != name {
		t.Errorf("claim %s bound to %q", name, last.Spec.VolumeName)
	}
}

// await returns when condition is true, and ends the test when that takes too
// long.
func await(t *testing.T, condition wait.ConditionWithContextFunc) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, condition)
	if err != nil {
		t.Fatal(err)
	}
}
