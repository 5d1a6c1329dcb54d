package controlplane

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadAuditStopsBeforePartialLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	log := `{"stage":"ResponseComplete","verb":"create","user":{"username":"a"},"responseStatus":{"code":201}}
{"stage":"ResponseComplete","verb":"patch","requestObject":{"x":1}}
{"stage":"Respon`
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for event, err := range ReadAudit(path) {
		if err != nil {
			t.Fatal(err)
		}
		verbs = append(verbs, event.Verb)
	}
	if diff := cmp.Diff([]string{"create", "patch"}, verbs); diff != "" {
		t.Errorf("verbs (-want +got):\n%s", diff)
	}
}

func TestReadAuditReportsCorruptLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{}\nnot JSON\n{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var events, errs int
	for _, err := range ReadAudit(path) {
		if err != nil {
			errs++
		} else {
			events++
		}
	}
	if events != 1 || errs != 1 {
		t.Errorf("%d events and %d errors, want one of each", events, errs)
	}
}
