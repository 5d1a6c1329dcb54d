package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestNodesAreCachedByWhatDecidesAboutVolumes(t *testing.T) {
	now := metav1.Now()
	taints := []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	full := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n", UID: "u", ResourceVersion: "7", Labels: map[string]string{corev1.LabelHostname: "n"}, DeletionTimestamp: &now,
			Annotations: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
		},
		Spec: corev1.NodeSpec{Unschedulable: true, Taints: taints, PodCIDR: "10.0.0.0/24"},
		Status: corev1.NodeStatus{
			Images: []corev1.ContainerImage{{Names: []string{"large"}}},
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse},
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: now, LastHeartbeatTime: now, Message: "long"},
			},
		},
	}
	want := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n", UID: "u", ResourceVersion: "7", Labels: map[string]string{corev1.LabelHostname: "n"}, DeletionTimestamp: &now,
		},
		Spec: corev1.NodeSpec{Unschedulable: true, Taints: taints},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
		}},
	}
	got, err := slimNode(full)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cached Node (-want +got):\n%s", diff)
	}
	tombstone := toolscache.DeletedFinalStateUnknown{Key: "n"}
	if got, err := slimNode(tombstone); err != nil || got != any(tombstone) {
		t.Errorf("a tombstone became %v, %v", got, err)
	}
}

// TestEndpointsAreCachedOfTheAgentsServiceOnly: a cluster has many more.
func TestEndpointsAreCachedOfTheAgentsServiceOnly(t *testing.T) {
	o := agentsOptions{service: "agents", namespace: "ns"}
	options := cache.Options{ByObject: map[client.Object]cache.ByObject{}}
	o.addToCache(&options)
	for object, by := range options.ByObject {
		if _, ok := object.(*discoveryv1.EndpointSlice); !ok {
			continue
		}
		if len(by.Namespaces) != 1 || by.Namespaces["ns"].LabelSelector.String() != "kubernetes.io/service-name=agents" {
			t.Errorf("cached: %v", by.Namespaces)
		}
		return
	}
	t.Error("not restricted")
}
