package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLockIsExclusiveAndNamesItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	held, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path); !errors.Is(err, errLocked) {
		t.Errorf("second lock = %v, want %v", err, errLocked)
	}
	if pid, err := holder(path); err != nil || pid != os.Getpid() {
		t.Errorf("holder = %d, %v, want %d", pid, err, os.Getpid())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := awaitLock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("awaitLock = %v, want %v", err, context.Canceled)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := awaitLock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDownWithoutControlPlaneIsNoError(t *testing.T) {
	if err := down(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
}
