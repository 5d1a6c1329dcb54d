package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestColourIsForTerminalsAndNoColorSwitchesItOff(t *testing.T) {
	tests := []struct {
		name     string
		terminal bool
		env      map[string]string
		want     bool
	}{
		{"terminal", true, nil, true},
		{"file or pipe", false, nil, false},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, false},
		{"NO_COLOR empty counts for nothing", true, map[string]string{"NO_COLOR": ""}, true},
		{"dumb terminal", true, map[string]string{"TERM": "dumb"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			getenv := func(name string) string { return test.env[name] }
			if got := wantsColour(test.terminal, getenv); got != test.want {
				t.Errorf("wantsColour() = %v, want %v", got, test.want)
			}
		})
	}
}

func TestScreenWithoutColourWritesPlainText(t *testing.T) {
	var text strings.Builder
	s := &screen{out: &text}
	s.Step(1, "Title")
	s.Command("true")
	s.Output("one\n\ntwo\n")
	s.Kept("promise %d", 1)
	const want = "\n1. Title\n   $ true\n     one\n\n     two\n   ok promise 1\n"
	if text.String() != want {
		t.Errorf("got %q, want %q", text.String(), want)
	}
}

func TestPhasesTellsEachChangeOnce(t *testing.T) {
	p := phases{corev1.ClaimPending}
	for _, phase := range []corev1.PersistentVolumeClaimPhase{corev1.ClaimPending, corev1.ClaimLost, corev1.ClaimLost, corev1.ClaimBound} {
		p.add(phase)
	}
	if got, want := p.String(), "Pending -> Lost -> Bound"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFromLine(t *testing.T) {
	tests := map[string]string{
		"Name: x\nEvents:\n  one\n": "Events:\n  one\n",
		"Events: none\n":            "Events: none\n",
		"no such Events: line\n":    "no such Events: line\n",
	}
	for text, want := range tests {
		if got := fromLine(text, "Events:"); got != want {
			t.Errorf("fromLine(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestWardenEndsTheControllerAndRemovesTheFolder(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "demo")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := startWarden(folder)
	if err != nil {
		t.Fatal(err)
	}
	c, err := startController(w, filepath.Join(folder, "log"), []string{"/bin/sh", "-c", "sleep 600 & wait"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// What the kernel does when the demo is killed.
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the controller outlives the demo")
	}
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestStopLeavesNothingToTheWarden(t *testing.T) {
	folder := t.TempDir()
	w, err := startWarden(folder)
	if err != nil {
		t.Fatal(err)
	}
	c, err := startController(w, filepath.Join(folder, "log"), []string{"sleep", "600"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.stop(), c.stop(), w.close()); err != nil {
		t.Error(err)
	}
	select {
	case <-c.ended:
	default:
		t.Error("the controller still runs")
	}
}
