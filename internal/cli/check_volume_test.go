package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckVolumeLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	cmd := NewCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"check-volume", dir})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), dir) {
		t.Errorf("printed %q", out.String())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestCheckVolumeFailsWhereNothingCanBeWritten(t *testing.T) {
	for name, path := range map[string]string{
		"no directory": filepath.Join(t.TempDir(), "missing"),
		"read-only":    "/proc/self",
	} {
		t.Run(name, func(t *testing.T) {
			if err := checkVolume(path); err == nil {
				t.Error("no error")
			}
		})
	}
}
