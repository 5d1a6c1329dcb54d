package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/berth-storage/berth/test/controlplane"
)

const streams = "this API server streams lists to who watches; older ones don't"

// unused are rights that these tests may have no use for, with the reason why the
// controller has them.
var unused = map[string]string{
	"list nodes":                               streams,
	"list persistentvolumeclaims":              streams,
	"list persistentvolumes":                   streams,
	"list storageclasses.storage.k8s.io":       streams,
	"list endpointslices.discovery.k8s.io":     streams,
	"list csistoragecapacities.storage.k8s.io": streams,
	"get nodes":                                  "a Node that seems to be deleted is looked for once more",
	"get namespaces":                             "a share of an NFS server is marked with the cluster's identity",
	"create csidrivers.storage.k8s.io":           "somebody has deleted the object that the installation made, or it made none",
	"delete csidrivers.storage.k8s.io":           "capacity is turned off, and it was not the chart that made the object",
	"patch persistentvolumes/status":             "kube-controller-manager is too slow to bind",
	"patch events.events.k8s.io":                 "the same event again, a few minutes later",
	"delete csistoragecapacities.storage.k8s.io": "a node or a class goes away",
}

// absences are times in which an installation's rights were being removed, before
// or after its last pod.
var absences []absence

type absence struct{ from, to time.Time }

// withoutBerth notes that rights are missing while remove runs, and until
// returned is called.
func withoutBerth(remove func()) (returned func()) {
	from := time.Now()
	absences = append(absences, absence{from: from, to: from.AddDate(1, 0, 0)})
	last := len(absences) - 1
	remove()
	return func() { absences[last].to = time.Now() }
}

func isAbsence(at time.Time) bool {
	return slices.ContainsFunc(absences, func(a absence) bool { return at.After(a.from) && at.Before(a.to) })
}

// TestEachRightIsUsedAndNoneIsMissing compares what the controller has asked for
// in all tests before, by the API server's audit log, with what it may.
func TestEachRightIsUsedAndNoneIsMissing(t *testing.T) {
	if skipReason != "" {
		t.Skip(skipReason)
	}
	used := map[string]int{}
	for event, err := range controlplane.ReadAudit(shared.ControlPlane().AuditLogPath()) {
		if err != nil {
			t.Fatal(err)
		}
		if event.ResponseStatus != nil && event.ResponseStatus.Code == 403 && !isAbsence(event.RequestReceivedTimestamp.Time) {
			t.Errorf("forbidden: %s %s: %s", event.Verb, event.RequestURI, event.ResponseStatus.Message)
		}
		if event.ObjectRef != nil {
			used[rightOf(event)]++
		}
	}
	granted := grantedRights(t)
	for _, right := range slices.Sorted(maps.Keys(granted)) {
		switch reason, excused := unused[right]; {
		case used[right] > 0:
			t.Logf("%s: %d times", right, used[right])
		case excused:
			t.Logf("%s: not here: %s", right, reason)
		default:
			t.Errorf("%s is granted, and nobody used it", right)
		}
	}
	for right := range unused {
		if !granted[right] {
			t.Errorf("%s is not granted, so the list need not mention it", right)
		}
	}
}

func rightOf(event auditv1.Event) string {
	resource := event.ObjectRef.Resource
	if event.ObjectRef.Subresource != "" {
		resource += "/" + event.ObjectRef.Subresource
	}
	return right(event.Verb, event.ObjectRef.APIGroup, resource)
}

func right(verb, group, resource string) string {
	if group == "" {
		return fmt.Sprintf("%s %s", verb, resource)
	}
	return fmt.Sprintf("%s %s.%s", verb, resource, group)
}

// grantedRights returns those of config/rbac/role.yaml.
func grantedRights(t *testing.T) map[string]bool {
	t.Helper()
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "config", "rbac", "role.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	granted := map[string]bool{}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		role := &rbacv1.ClusterRole{} // a Role has the same rules
		err := documents.Decode(role)
		if errors.Is(err, io.EOF) {
			return granted
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						granted[right(verb, group, resource)] = true
					}
				}
			}
		}
	}
}
