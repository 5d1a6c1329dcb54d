package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authnv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

var auditStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// request is an audit event at a number of seconds after auditStart.
func request(user string, second int, verb, resource, subresource string, code int32) auditv1.Event {
	return auditv1.Event{
		Stage:                    auditv1.StageResponseComplete,
		User:                     authnv1.UserInfo{Username: user},
		Verb:                     verb,
		RequestURI:               "/some/path",
		ObjectRef:                &auditv1.ObjectReference{Resource: resource, Subresource: subresource},
		ResponseStatus:           &metav1.Status{Code: code},
		RequestReceivedTimestamp: metav1.NewMicroTime(auditStart.Add(time.Duration(second) * time.Second)),
	}
}

func writeAudit(t *testing.T, events ...auditv1.Event) string {
	t.Helper()
	var text bytes.Buffer
	for _, event := range events {
		if err := json.NewEncoder(&text).Encode(event); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCountRequestsByUserWindowAndKind(t *testing.T) {
	noObject := request("me", 1, "get", "", "", 200)
	noObject.ObjectRef, noObject.RequestURI = nil, "/version"
	early := request("me", 1, "patch", "persistentvolumes", "", 0)
	early.Stage, early.ResponseStatus = auditv1.StageRequestReceived, nil
	path := writeAudit(t,
		request("me", 0, "create", "persistentvolumes", "", 201),
		request("me", 1, "create", "persistentvolumes", "", 409),
		request("me", 1, "patch", "persistentvolumeclaims", "status", 200),
		request("other", 1, "create", "persistentvolumes", "", 201),
		request("me", 1, "watch", "persistentvolumes", "", 200),
		request("me", 1, "update", "leases", "", 200),
		early,
		noObject,
		request("me", 2, "delete", "persistentvolumes", "", 200),
		request("me", 3, "deletecollection", "events", "", 200),
		request("me", 4, "delete", "persistentvolumes", "", 200),
	)
	at := func(second int) time.Time { return auditStart.Add(time.Duration(second) * time.Second) }

	got, err := countRequests(path, "me", window{at(0), at(2)}, window{at(2), at(4)})
	if err != nil {
		t.Fatal(err)
	}
	want := []requestCounts{
		{
			total:   4,
			byVerb:  map[string]int{"create": 2, "patch": 1, "get": 1},
			byKind:  map[string]int{"create persistentvolumes": 2, "patch persistentvolumeclaims/status": 1, "get /version": 1},
			refused: map[string]int{"create persistentvolumes: 409": 1},
		},
		{
			total:   2,
			byVerb:  map[string]int{"delete": 2},
			byKind:  map[string]int{"delete persistentvolumes": 1, "delete events": 1},
			refused: map[string]int{},
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(requestCounts{})); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestCountRequestsOfDamagedLogFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := countRequests(path, "me", window{}); err == nil {
		t.Error("no error for a log that is not JSON")
	}
}
