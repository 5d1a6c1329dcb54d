package main

import (
	"fmt"
	"strings"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/berth-storage/berth/test/controlplane"
)

// auditPolicy logs who asked for what, once per request, of the service accounts: the
// provisioners, which have the names of some, and kube-controller-manager's
// controllers. Watches and leases are left out; they depend on time, not on
// claims.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  verbs: [watch]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
`

// kcmBinder is the user that kube-controller-manager binds volumes as.
const kcmBinder = "system:serviceaccount:kube-system:persistent-volume-binder"

// verbs are the columns of the report. A deletecollection counts as delete.
var verbs = []string{"create", "patch", "update", "get", "list", "delete"}

// window is a span of time, its end excluded.
type window struct {
	start, end time.Time
}

func (w window) contains(t time.Time) bool {
	return !t.Before(w.start) && t.Before(w.end)
}

// requestCounts are the requests of one user in one window.
type requestCounts struct {
	total  int
	byVerb map[string]int
	// byKind counts by verb and resource: "patch persistentvolumes/status".
	byKind map[string]int
	// refused counts the answers of 400 and above, by kind and code.
	refused map[string]int
}

func newRequestCounts() requestCounts {
	return requestCounts{byVerb: map[string]int{}, byKind: map[string]int{}, refused: map[string]int{}}
}

func (c *requestCounts) add(event auditv1.Event) {
	verb := strings.TrimSuffix(event.Verb, "collection")
	kind := verb + " " + event.RequestURI
	if ref := event.ObjectRef; ref != nil {
		kind = verb + " " + ref.Resource
		if ref.Subresource != "" {
			kind += "/" + ref.Subresource
		}
	}
	c.total++
	c.byVerb[verb]++
	c.byKind[kind]++
	if s := event.ResponseStatus; s != nil && s.Code >= 400 {
		c.refused[fmt.Sprintf("%s: %d", kind, s.Code)]++
	}
}

// countRequests counts the requests that user sent in each of the windows.
func countRequests(path, user string, windows ...window) ([]requestCounts, error) {
	counts := make([]requestCounts, len(windows))
	for i := range counts {
		counts[i] = newRequestCounts()
	}
	for event, err := range controlplane.ReadAudit(path) {
		if err != nil {
			return nil, err
		}
		if event.User.Username != user || event.Stage != auditv1.StageResponseComplete || isExcluded(event) {
			continue
		}
		for i, w := range windows {
			if w.contains(event.RequestReceivedTimestamp.Time) {
				counts[i].add(event)
			}
		}
	}
	return counts, nil
}

func isExcluded(event auditv1.Event) bool {
	return event.Verb == "watch" || event.ObjectRef != nil && event.ObjectRef.Resource == "leases"
}
