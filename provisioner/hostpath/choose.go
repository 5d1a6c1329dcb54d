package hostpath

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-storage/berth/provisioner"
)

// unfitFor says why a volume that no pod asks for yet should not be made on node,
// or "". A pod that tolerates nothing must be able to run there.
func unfitFor(node *corev1.Node, allowed []corev1.TopologySelectorTerm) string {
	switch {
	case node.DeletionTimestamp != nil:
		return "is being deleted"
	case !isReady(node):
		return "is not Ready"
	case node.Spec.Unschedulable:
		return "is cordoned"
	}
	for _, taint := range node.Spec.Taints {
		if taint.Effect == corev1.TaintEffectNoSchedule || taint.Effect == corev1.TaintEffectNoExecute {
			return "has the taint " + taint.ToString()
		}
	}
	if !matchesAny(allowed, node.Labels) {
		return "has none of the labels in allowedTopologies"
	}
	if node.Labels[corev1.LabelHostname] == "" {
		return "lacks the label " + corev1.LabelHostname
	}
	return ""
}

func isReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// candidate is a node that a volume could be made on.
type candidate struct {
	node string
	// unfit says why it should not, or "".
	unfit    string
	capacity provisioner.Capacity
	// err says that its capacity is not known.
	err error
}

// chooseNodes returns the nodes that have room for size bytes in pool, the one with the
// most room first, and otherwise by name; and for all others why not.
func chooseNodes(candidates []candidate, pool string, size int64) (nodes []string, refused []string) {
	candidates = slices.Clone(candidates)
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.capacity.Available, a.capacity.Available), strings.Compare(a.node, b.node))
	})
	for _, c := range candidates {
		switch {
		case c.unfit != "":
			refused = append(refused, fmt.Sprintf("%s %s", c.node, c.unfit))
		case c.err != nil:
			refused = append(refused, fmt.Sprintf("%s: %v", c.node, c.err))
		case c.capacity.MaximumVolumeSize <= 0 || c.capacity.Available <= 0:
			refused = append(refused, fmt.Sprintf("%s has no pool %s, or no room in it", c.node, pool))
		case c.capacity.MaximumVolumeSize < size:
			room := quantity(uint64(roundDown(c.capacity.MaximumVolumeSize))) //nolint:gosec // more than 0
			refused = append(refused, fmt.Sprintf("%s has room for %s", c.node, room.String()))
		default:
			nodes = append(nodes, c.node)
		}
	}
	return nodes, refused
}

// roundDown leaves out what changes from moment to moment: an event whose text
// changes is another event.
func roundDown(bytes int64) int64 {
	for _, unit := range []int64{1 << 30, 1 << 20} {
		if bytes >= unit {
			return bytes - bytes%unit
		}
	}
	return bytes
}

// maxReasons bounds how many reasons an error repeats.
const maxReasons = 8

// reasons joins why nodes were refused, as far as an event has room for it.
func reasons(refused []string) string {
	shown := refused[:min(len(refused), maxReasons)]
	text := strings.Join(shown, "; ")
	if more := len(refused) - len(shown); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}
