package controllers

import (
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
)

func TestClipKeepsShortTexts(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 20), strings.Repeat("ä", 10)} {
		if got := clip(s, 20); got != s {
			t.Errorf("clip(%q) = %q, want it as it is", s, got)
		}
	}
}

func TestClipCutsBetweenCharacters(t *testing.T) {
	for name, character := range map[string]string{"1 byte": "x", "2 bytes": "ä", "3 bytes": "…", "4 bytes": "🚢", "U+FFFD itself": "\uFFFD"} {
		t.Run(name, func(t *testing.T) {
			for shift := range 4 {
				s := strings.Repeat("-", shift) + strings.Repeat(character, 30)
				got := clip(s, 20)
				if len(got) > 20 || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
					t.Errorf("clip(%q) = %q (%d bytes), want valid text of at most 20 bytes that ends in …", s, got, len(got))
				}
				if len(got) < 20-len(character) {
					t.Errorf("clip(%q) = %q, shorter than it need be", s, got)
				}
				if !strings.HasPrefix(s, strings.TrimSuffix(got, "…")) {
					t.Errorf("clip(%q) = %q, not the text's beginning", s, got)
				}
			}
		})
	}
}

func TestEventNotesFitTheAPI(t *testing.T) {
	recorder := events.NewFakeRecorder(1)
	warn(recorder, newClaim(), reasonProvisioningFailed, actionProvision, "%s 100%% sure", strings.Repeat("ä", 10_000))
	note := strings.TrimPrefix(<-recorder.Events, corev1.EventTypeWarning+" "+reasonProvisioningFailed+" ")
	if len(note) > 1024 || !utf8.ValidString(note) {
		t.Errorf("a note of %d bytes, valid UTF-8: %v; the API server takes 1024", len(note), utf8.ValidString(note))
	}
}

func TestEventNotesAreNotFormattedTwice(t *testing.T) {
	recorder := events.NewFakeRecorder(1)
	tell(recorder, newClaim(), reasonProvisioning, actionProvision, "pattern %s", "100%d%s")
	if got, want := <-recorder.Events, "Normal Provisioning pattern 100%d%s"; got != want {
		t.Errorf("event %q, want %q", got, want)
	}
}
