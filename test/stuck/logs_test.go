package stuck_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// outcomes are the lines that tell what came of an attempt, with the keys that they
// have besides the time.
var outcomes = map[string][]string{
	"Provisioned volume":                   {"claim", "volume", "class", "driver", "node", "duration"},
	"The claim is bound":                   {"claim", "volume", "class", "driver", "node", "duration"},
	"Expanded volume":                      {"claim", "volume", "class", "driver", "node", "duration", "size"},
	"Deleted volume":                       {"claim", "volume", "class", "driver", "node", "duration"},
	"Provisioning failed":                  {"claim", "volume", "class", "driver", "duration", "error", "retryAfter"},
	"Expansion failed":                     {"claim", "volume", "class", "driver", "node", "duration", "error", "retryAfter"},
	"Deletion failed":                      {"claim", "volume", "class", "driver", "node", "duration", "error", "retryAfter"},
	"The claim's storage is unavailable":   {"claim", "volume", "class", "driver", "duration", "reason", "retryAfter"},
	"The volume's storage is unavailable":  {"claim", "volume", "class", "driver", "node", "reason", "retryAfter"},
	"Gave the claim back to the scheduler": {"claim", "volume", "class", "driver", "node", "duration", "reason"},
	"The claim can't be provisioned until it or its class changes": {"claim", "volume", "class", "driver", "duration", "reason"},
	"The volume can't grow to what its claim asks for":             {"claim", "volume", "class", "driver", "node", "duration", "reason"},
}

// makeOutcomes brings about those that no claim that waits has.
func (i *installation) makeOutcomes(n *tenant) {
	n.class(func(c *storagev1.StorageClass) { c.AllowVolumeExpansion = ptr.To(true) })

	grown := n.claim(called("grown"), onNode("node-1"))
	n.expectBound(grown)
	n.grow(grown, "2Gi")
	i.expectLogged("Expanded volume")
	n.grow(grown, "900Ti")
	i.expectLogged("The volume can't grow to what its claim asks for")
	i.ok(i.client.Delete(i.t.Context(), grown))
	i.expectLogged("Deleted volume")

	edited := n.claim(called("edited"), onNode("node-1"))
	n.expectBound(edited)
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: edited.Spec.VolumeName}}
	i.get(volume)
	before := volume.DeepCopy()
	volume.Annotations["berth.storage/path"] = "elsewhere"
	i.ok(i.client.Patch(i.t.Context(), volume, client.MergeFrom(before)))
	n.grow(edited, "2Gi")
	i.expectLogged("Expansion failed")
	i.ok(i.client.Delete(i.t.Context(), edited))
	i.expectLogged("Deletion failed")

	n.claim(called("back"), onNode("node-3"))
	i.expectLogged("Gave the claim back to the scheduler")
}

// grow has a claim ask for more.
func (n *tenant) grow(claim *corev1.PersistentVolumeClaim, size string) {
	n.t.Helper()
	n.get(claim)
	before := claim.DeepCopy()
	claim.Spec.Resources.Requests = sized(size)
	n.ok(n.client.Patch(n.t.Context(), claim, client.MergeFrom(before)))
}

// expectLogged waits for a line of the controller.
func (i *installation) expectLogged(message string) {
	i.t.Helper()
	i.Eventually(i.controller.said).Should(gomega.ContainSubstring(`"msg":"`+message+`"`), message)
}

// checkLog looks at all lines of a controller that did what it could about claims
// that can't be helped. Those of a claim in placed have to say which node was
// selected for it.
func checkLog(t *testing.T, output string, placed map[string]bool) {
	t.Helper()
	seen := map[string]bool{}
	for text := range strings.SplitSeq(strings.TrimSpace(output), "\n") {
		line := map[string]any{}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Errorf("not JSON: %s", text)
			continue
		}
		if _, ok := line["stacktrace"]; ok {
			t.Errorf("a stack trace: %s", text)
		}
		message, _ := line["msg"].(string)
		if message == "Reconciler error" {
			t.Errorf("an error of the work is taken for one of the API server: %s", text)
		}
		seen[message] = true
		keys := outcomes[message]
		if claim, _ := line["claim"].(string); keys != nil && placed[claim] {
			keys = append(slices.Clone(keys), "node")
		}
		for _, key := range keys {
			if value, ok := line[key].(string); !ok || value == "" {
				t.Errorf("%q lacks %s: %s", message, key, text)
			}
		}
	}
	for message := range outcomes {
		if !seen[message] {
			t.Errorf("there is no line %q; there are %q", message, slices.Sorted(maps.Keys(seen)))
		}
	}
}
