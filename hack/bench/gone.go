package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

const gonePoll = 250 * time.Millisecond

// awaitGone returns when no claim and no volume of class is left, nor, unless
// pool is "", a directory in it. n is how many there were.
func (b *bench) awaitGone(ctx context.Context, class, pool string, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.patience(n), errors.New("timed out"))
	defer cancel()
	left := "not counted"
	for {
		l, err := b.leftOf(ctx, class, pool)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w; left: %s", context.Cause(ctx), left)
		case err != nil:
			return err
		case l == leftovers{}:
			return nil
		}
		left = fmt.Sprintf("%d claims, %d volumes, %d directories", l.claims, l.volumes, l.directories)
		select {
		case <-ctx.Done():
		case <-time.After(gonePoll):
		}
	}
}

// leftovers are what still has to go.
type leftovers struct {
	claims, volumes, directories int
}

func (b *bench) leftOf(ctx context.Context, class, pool string) (leftovers, error) {
	fromCache := metav1.ListOptions{ResourceVersion: "0"}
	var l leftovers
	claims, err := b.cluster.client.CoreV1().PersistentVolumeClaims("").List(ctx, fromCache)
	if err != nil {
		return l, err
	}
	for i := range claims.Items {
		if volumehelpers.GetPersistentVolumeClaimClass(&claims.Items[i]) == class {
			l.claims++
		}
	}
	volumes, err := b.cluster.client.CoreV1().PersistentVolumes().List(ctx, fromCache)
	if err != nil {
		return l, err
	}
	for i := range volumes.Items {
		if volumes.Items[i].Spec.StorageClassName == class {
			l.volumes++
		}
	}
	if pool != "" {
		l.directories, err = countVolumes(pool)
	}
	return l, err
}

// countVolumes counts the directories of volumes in a pool, those in the trash
// included. The hidden directories and what is directly in them are the driver's
// administration.
func countVolumes(pool string) (int, error) {
	count := 0
	err := filepath.WalkDir(pool, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // purged meanwhile
		}
		if err != nil || !d.IsDir() || path == pool {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".")
		administration := strings.HasPrefix(filepath.Base(filepath.Dir(path)), ".")
		if !hidden && !administration {
			count++
		}
		return nil
	})
	return count, err
}
