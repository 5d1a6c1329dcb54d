package directory_test

import (
	"fmt"
	"os"
	"slices"
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

// late is a server that takes its time for a change of a marker: it gives no
// answer, and carries it out before the next change of that marker, or later.
type late struct {
	*bench
	volume string
	faults *faultFS
	// hold is the operation whose next call is held up, and do carries it out.
	hold string
	do   func() error
	held bool
}

func newLate(t *testing.T, volume string) *late {
	t.Helper()
	b := newBench(t)
	l := &late{bench: b, volume: volume, faults: &faultFS{Filesystem: local(t, b.base)}}
	b.pool = poolOn(t, l.faults, func(*directory.Options) {})
	b.create(volumeAt("pvc-0", "other")) // so that the pool is open
	l.faults.before = func(op, name string) error {
		if !strings.HasPrefix(name, volume+".") || op != "WriteFile" && op != "Remove" && op != "Rename" {
			return nil
		}
		l.catchUp()
		if op != l.hold {
			return nil
		}
		l.hold, l.held = "", true
		return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
	}
	return l
}

func (l *late) marker() string { return l.path(".berth/volumes/" + l.volume + ".json") }

// catchUp carries out what was held up.
func (l *late) catchUp() {
	if l.held {
		l.held = false
		must(l.t, l.do())
	}
}

// holdWrite holds up the next write of the marker that spec makes.
func (l *late) holdWrite(spec directory.Spec) {
	l.t.Helper()
	l.create(spec)
	content, err := os.ReadFile(l.marker())
	must(l.t, err)
	must(l.t, l.pool.Discard(l.ctx, spec.Volume))
	l.hold, l.do = "WriteFile", func() error { return os.WriteFile(l.marker(), content, 0o600) }
}

func (l *late) holdRemoval() {
	l.hold, l.do = "Remove", func() error { return os.Remove(l.marker()) }
}

// A marker that may be written yet is no reason to say that there is none.
func TestLateMarkerOutlivesNoDiscard(t *testing.T) {
	for name, end := range map[string]func(l *late, spec directory.Spec) error{
		"Discard": func(l *late, spec directory.Spec) error { return l.pool.Discard(l.ctx, spec.Volume) },
		"Delete":  func(l *late, spec directory.Spec) error { return l.delete(spec) },
		"Has": func(l *late, spec directory.Spec) error {
			has, err := l.pool.Has(l.ctx, spec.Volume)
			if has {
				t.Error("it has the volume")
			}
			return err
		},
		"another volume": func(l *late, spec directory.Spec) error {
			_, err := l.pool.Create(l.ctx, volumeAt("pvc-2", spec.Path))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := volumeAt("pvc-1", "path")
			l := newLate(t, spec.Volume)
			l.holdWrite(spec)
			lstat := true // and then it is silent for a while
			before := l.faults.before
			l.faults.before = func(op, name string) error {
				if lstat && op == "Lstat" && name == "pvc-1.json" {
					return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
				}
				return before(op, name)
			}
			_, err := l.pool.Create(l.ctx, spec)
			wantError(t, "Create", err, directory.ErrOutcomeUnknown)
			lstat = false

			must(t, end(l, spec))
			l.catchUp()
			if name == "another volume" {
				l.wantAdmin("volumes", "pvc-0.json", "pvc-2.json")
				return
			}
			l.wantAdmin("volumes", "pvc-0.json")
			l.create(volumeAt("pvc-2", spec.Path))
		})
	}
}

// A creation that failed is taken back. When it is tried again, the marker that
// is still there may yet be removed.
func TestLateRemovalTakesNoMarkerFromALiveVolume(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	l := newLate(t, spec.Volume)
	l.holdRemoval()
	before := l.faults.before
	full := true
	l.faults.before = func(op, name string) error {
		if full && op == "Mkdir" && name == "path" {
			return fmt.Errorf("no space left on device")
		}
		return before(op, name)
	}
	if _, err := l.pool.Create(l.ctx, spec); err == nil || !l.held {
		t.Fatalf("Create = %v, and the removal of the marker is held up: %v", err, l.held)
	}
	full = false
	l.create(spec)
	l.catchUp()
	l.wantAdmin("volumes", "pvc-0.json", "pvc-1.json")
	l.wantTree("other", "path")
}

// What was unsettled about a volume that is long gone says nothing about the one
// that has its path now.
func TestSettledVolumeTakesNoPathFromTheNext(t *testing.T) {
	for name, onDelete := range map[string]directory.OnDelete{"delete": directory.OnDeleteDelete, "retain": directory.OnDeleteRetain} {
		t.Run(name, func(t *testing.T) {
			spec := volumeAt("pvc-1", "a/path")
			spec.OnDelete = onDelete
			l := newLate(t, spec.Volume)
			l.create(spec)
			l.holdRemoval()
			wantError(t, "Delete", l.delete(spec), directory.ErrOutcomeUnknown)
			l.catchUp()
			must(t, l.delete(spec))
			if onDelete == directory.OnDeleteRetain {
				must(t, os.Remove(l.path(spec.Path)))
			}
			l.create(volumeAt("pvc-2", spec.Path))
			for range 2 {
				_, err := l.pool.Create(l.ctx, volumeAt("pvc-3", spec.Path+"/below"))
				wantError(t, "Create in a volume", err, directory.ErrConflict)
				_, err = l.pool.Create(l.ctx, volumeAt("pvc-3", "other/below"))
				wantError(t, "Create in another volume", err, directory.ErrConflict)
			}
			l.wantTree("a", "a/path", "other")
			l.wantAdmin("volumes", "pvc-0.json", "pvc-2.json")
		})
	}
}

// Many volumes may be unsettled after an outage: a creation asks for those that
// stand in its way, and for no other.
func TestCreationSettlesOnlyWhatIsInItsWay(t *testing.T) {
	b := newBench(t)
	faults := &faultFS{Filesystem: local(t, b.base)}
	b.pool = poolOn(t, faults, func(*directory.Options) {})
	b.create(volumeAt("pvc-0", "other"))
	faults.before = func(op, name string) error {
		if strings.HasSuffix(name, ".json") && (op == "WriteFile" || op == "Lstat") {
			return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
		}
		return nil
	}
	for i := range 50 {
		_, err := b.pool.Create(b.ctx, volumeAt(fmt.Sprint("pvc-late-", i), fmt.Sprint("path-", i)))
		wantError(t, "Create", err, directory.ErrOutcomeUnknown)
	}
	var looked []string
	faults.before = func(op, name string) error {
		if op == "Lstat" && strings.HasPrefix(name, "pvc-late-") {
			looked = append(looked, name)
		}
		return nil
	}
	b.create(volumeAt("pvc-new", "path-7"))
	if want := []string{"pvc-late-7.json"}; !slices.Equal(looked, want) {
		t.Errorf("it looked for %v, want %v", looked, want)
	}
}
