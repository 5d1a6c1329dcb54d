package directory_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

// A volume whose marker may or may not have been written keeps its path until
// somebody else wants it: then it is looked whether there is a marker.
func TestPathOfAVolumeWithoutMarkerIsFree(t *testing.T) {
	for name, written := range map[string]bool{"not written": false, "written": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			faults := &faultFS{Filesystem: local(t, b.base)}
			b.pool = poolOn(t, faults, func(*directory.Options) {})
			b.create(volumeAt("pvc-0", "other")) // so that the pool is open
			silent := fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
			fail := func(op, name string) error {
				if strings.HasPrefix(name, "pvc-1.") && (op == "WriteFile" || op == "Lstat") {
					return silent
				}
				return nil
			}
			if written {
				faults.after = fail
			} else {
				faults.before = fail
			}
			_, err := b.pool.Create(b.ctx, volumeAt("pvc-1", "path"))
			wantError(t, "Create", err, directory.ErrOutcomeUnknown)
			faults.before, faults.after = nil, nil

			_, err = b.pool.Create(b.ctx, volumeAt("pvc-2", "path"))
			if written {
				wantError(t, "Create where another volume has its marker", err, directory.ErrConflict)
				must(t, b.pool.Discard(b.ctx, "pvc-1"))
				_, err = b.pool.Create(b.ctx, volumeAt("pvc-2", "path"))
			}
			must(t, err)
			b.wantAdmin("volumes", "pvc-0.json", "pvc-2.json")
			b.wantTree("other", "path")
		})
	}
}

// The same when the volume is dropped, and the answer is lost.
func TestPathOfADroppedVolumeIsFree(t *testing.T) {
	b := newBench(t)
	faults := &faultFS{Filesystem: local(t, b.base)}
	b.pool = poolOn(t, faults, func(*directory.Options) {})
	b.create(volumeAt("pvc-1", "path"))
	faults.after = func(op, name string) error {
		if op == "Remove" && strings.HasPrefix(name, "pvc-1.") {
			return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
		}
		return nil
	}
	wantError(t, "Discard", b.pool.Discard(b.ctx, "pvc-1"), directory.ErrOutcomeUnknown)
	faults.after = nil
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.create(volumeAt("pvc-2", "path"))
	b.wantAdmin("volumes", "pvc-2.json")
}
