package hostpath

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

func TestOnlyNodesThatAnyPodCanRunOnAreFit(t *testing.T) {
	zoneA := []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"a"}}}}}
	taint := func(key string, effect corev1.TaintEffect) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
	}
	ready := func(s corev1.ConditionStatus) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Status.Conditions[0].Status = s }
	}
	for name, tt := range map[string]struct {
		change  func(*corev1.Node)
		allowed []corev1.TopologySelectorTerm
		want    string // how the reason ends, "" for a fit node
	}{
		"ready":                      {func(*corev1.Node) {}, nil, ""},
		"in the zone":                {func(*corev1.Node) {}, zoneA, ""},
		"in another zone":            {func(n *corev1.Node) { n.Labels["zone"] = "b" }, zoneA, "allowedTopologies"},
		"not ready":                  {ready(corev1.ConditionFalse), nil, "not Ready"},
		"unknown":                    {ready(corev1.ConditionUnknown), nil, "not Ready"},
		"no conditions yet":          {func(n *corev1.Node) { n.Status.Conditions = nil }, nil, "not Ready"},
		"cordoned":                   {func(n *corev1.Node) { n.Spec.Unschedulable = true }, nil, "cordoned"},
		"going":                      {func(n *corev1.Node) { n.DeletionTimestamp = &metav1.Time{} }, nil, "deleted"},
		"repels pods":                {taint("dedicated", corev1.TaintEffectNoSchedule), nil, "taint dedicated:NoSchedule"},
		"evicts pods":                {taint("node.kubernetes.io/unreachable", corev1.TaintEffectNoExecute), nil, "taint node.kubernetes.io/unreachable:NoExecute"},
		"would rather have no pods":  {taint("busy", corev1.TaintEffectPreferNoSchedule), nil, ""},
		"without the hostname label": {func(n *corev1.Node) { delete(n.Labels, corev1.LabelHostname) }, nil, corev1.LabelHostname},
	} {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a", corev1.LabelHostname: "n1"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}
		tt.change(node)
		if got := unfitFor(node, tt.allowed); (got == "") != (tt.want == "") || !strings.HasSuffix(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestTheNodeWithTheMostRoomComesFirst(t *testing.T) {
	has := func(node string, available, largest int64) candidate {
		return candidate{node: node, capacity: provisioner.Capacity{Available: available, MaximumVolumeSize: largest}}
	}
	for name, tt := range map[string]struct {
		candidates []candidate
		want       []string
		refused    []string // the nodes they begin with
	}{
		"nobody":            {nil, nil, nil},
		"by room":           {[]candidate{has("n1", 20, 20), has("n2", 40, 40), has("n3", 30, 30)}, []string{"n2", "n3", "n1"}, nil},
		"equal, by name":    {[]candidate{has("n3", 20, 20), has("n1", 20, 20), has("n2", 20, 20)}, []string{"n1", "n2", "n3"}, nil},
		"too little":        {[]candidate{has("n1", 9, 9), has("n2", 10, 10)}, []string{"n2"}, []string{"n1"}},
		"much, in pieces":   {[]candidate{has("n1", 100, 5), has("n2", 20, 20)}, []string{"n2"}, []string{"n1"}},
		"sizes don't count": {[]candidate{has("n1", 1, 1000)}, []string{"n1"}, nil},
		"a full disk":       {[]candidate{has("n1", 0, 1000)}, nil, []string{"n1"}},
		"lacks the pool":    {[]candidate{has("n1", 0, 0), has("n2", 10, 10)}, []string{"n2"}, []string{"n1"}},
		"unreachable":       {[]candidate{{node: "n1", err: errors.New("no route")}, has("n2", 10, 10)}, []string{"n2"}, []string{"n1"}},
		"unfit":             {[]candidate{{node: "n1", unfit: "is cordoned", capacity: provisioner.Capacity{Available: 99, MaximumVolumeSize: 99}}}, nil, []string{"n1"}},
	} {
		got, refused := chooseNodes(tt.candidates, "default", 10)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if len(refused) != len(tt.refused) {
			t.Errorf("%s: refused %v, want %v", name, refused, tt.refused)
		}
		for i := range min(len(refused), len(tt.refused)) {
			if !strings.HasPrefix(refused[i], tt.refused[i]) {
				t.Errorf("%s: refused %v, want %v", name, refused, tt.refused)
			}
		}
	}
}

func TestAnErrorNamesNoMoreNodesThanFit(t *testing.T) {
	var many []string
	for range 5000 {
		many = append(many, "a-node-with-a-rather-long-name-of-its-own.example.com has room for 1Gi")
	}
	if got := reasons(many); len(got) > 900 || !strings.HasSuffix(got, "and 4992 more") {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

// TestRoomIsToldInRoundNumbers: free bytes change all the time, and every new text
// would be a new event.
func TestRoomIsToldInRoundNumbers(t *testing.T) {
	for room, want := range map[int64]string{
		0: "n1 has no pool ssd, or no room in it", 1000: "n1 has room for 1k", 3<<20 + 5: "n1 has room for 3Mi", 38<<30 + 7<<20 + 5: "n1 has room for 38Gi",
	} {
		_, refused := chooseNodes([]candidate{{node: "n1", capacity: provisioner.Capacity{Available: room, MaximumVolumeSize: room}}}, "ssd", 1<<50)
		if !slices.Equal(refused, []string{want}) {
			t.Errorf("%d bytes: %q, want %q", room, refused, want)
		}
	}
}
