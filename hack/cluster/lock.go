package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lockFile is a file that holds the process id of whoever has it locked. The
// kernel releases the lock when the process ends, in whatever way, so that neither a crash
// nor a reused process id misleads.
type lockFile struct {
	*os.File
}

var errLocked = errors.New("locked by another process")

// lock locks the file for this process. The error is errLocked when another one
// has it.
func lock(path string) (*lockFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the developer names the folder
	if err != nil {
		return nil, err
	}
	l := &lockFile{f}
	if err := l.take(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return l, err
}

func (l *lockFile) take() error {
	err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

// awaitLock is lock, but waits until the file is free or ctx is done.
func awaitLock(ctx context.Context, path string) (*lockFile, error) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		l, err := lock(path)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w: %w", path, err, ctx.Err())
		case <-ticker.C:
		}
	}
}

// holder returns the process id in a lock file.
func holder(path string) (int, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the developer names the folder
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
