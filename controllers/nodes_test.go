package controllers_test

import (
	"context"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// scopeKey is on a scope's nodes, and in the selectors of its pods.
const scopeKey = "example.com/scope"

// hostnameOf is the label kubernetes.io/hostname of a node: something else than
// its name.
func hostnameOf(node string) string { return "host-of-" + node }

// node creates a Ready node without a kubelet, whose name begins with the
// scope's.
func (s *scope) node(suffix string) string {
	s.t.Helper()
	name := s.name + "-" + suffix
	s.create(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: hostnameOf(name), scopeKey: s.name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("100")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Now())}},
		},
	})
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), namedNode(name)) })
	return name
}

func namedNode(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// newClaimNamed is for reading or deleting a claim that exists.
func newClaimNamed(namespace, name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// pod creates a pod with a new claim of that size and the pod's name, for any
// node of the scope, Ready or not.
func (s *scope) pod(name, size string) *corev1.Pod {
	s.t.Helper()
	s.claim(name, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized(size) })
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{scopeKey: s.name},
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			AutomountServiceAccountToken:  ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			Containers:                    []corev1.Container{{Name: "c", Image: "example.com/none"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}}},
		},
	}
	// The namespace's service account is made by kube-controller-manager.
	s.Eventually(func() error { return s.client.Create(s.t.Context(), pod) }).Should(gomega.Succeed())
	return pod
}

// nodeOf returns a function that reads where pod was placed.
func (s *scope) nodeOf(pod *corev1.Pod) func() string {
	return func() string {
		s.get(pod)
		return pod.Spec.NodeName
	}
}

// whyUnscheduled returns a function that reads what kube-scheduler says of pod.
func (s *scope) whyUnscheduled(pod *corev1.Pod) func() string {
	return func() string {
		s.get(pod)
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return c.Message
			}
		}
		return ""
	}
}
