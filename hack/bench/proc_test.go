package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestParseStatWithParenthesesInCommand(t *testing.T) {
	got, err := parseStat([]byte("42 (odd) (name) S 7 42 42 0 -1 4194560 5000 0 0 0 123 77 9 9 20 0 8 0 100 1 2\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (procStat{command: "odd) (name", parent: 7, cpuSeconds: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, text := range []string{"", "42 (short) S 7", "42 (cmd) S x 1 1 0 -1 0 0 0 0 0 1 1"} {
		if _, err := parseStat([]byte(text)); err == nil {
			t.Errorf("no error for %q", text)
		}
	}
}

func TestParsePeakRSS(t *testing.T) {
	got, err := parsePeakRSS("Name:\tberth\nVmPeak:\t  900 kB\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n")
	if err != nil || got != 2<<20 {
		t.Errorf("got %d, %v, want 2 MiB", got, err)
	}
	if _, err := parsePeakRSS("Name:\tkthread\n"); err == nil {
		t.Error("no error without VmHWM")
	}
}

func TestParseBusyLeavesOutIdleTime(t *testing.T) {
	got, err := parseBusy("cpu  100 10 50 9999 9999 20 20 0 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil || got != 2 {
		t.Errorf("got %g, %v, want 2", got, err)
	}
	if _, err := parseBusy("intr 1 2 3\n"); err == nil {
		t.Error("no error without the line of all CPUs")
	}
}

func TestCPUTimesOfThisProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	times, err := cpuTimes(map[string]int{"self": os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if self, ok := times["self"]; !ok || self < 0 || times[others] <= self {
		t.Errorf("implausible times %v", times)
	}
}

func TestCountVolumesSkipsAdministration(t *testing.T) {
	pool := t.TempDir()
	for _, path := range []string{".berth/volumes", ".berth/trash/deleted", "ns-claim-pvc-1", "nested/volume"} {
		if err := os.MkdirAll(filepath.Join(pool, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(pool, ".berth", "pool.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := countVolumes(pool)
	if want := 4; err != nil || got != want { // deleted, ns-claim-pvc-1, nested, nested/volume
		t.Errorf("got %d, %v, want %d", got, err, want)
	}
}
