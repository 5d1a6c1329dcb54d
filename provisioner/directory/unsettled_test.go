package directory_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-storage/berth/provisioner"
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

// late is a server that takes its time for a change: it gives no answer, and
// carries it out before the next change of the same name, or later.
type late struct {
	*bench
	volume string
	faults *faultFS
	// hold is the operation whose next call on name is held up, and do carries it
	// out.
	hold, name string
	do         func() error
	held       bool

	siblings *directory.Siblings
}

func (l *late) related(o *directory.Options) { o.Siblings = l.siblings }

// sibling is another way to the same pool, on which nothing is late.
func (l *late) sibling() *directory.Pool {
	l.t.Helper()
	p := poolOn(l.t, unlocked{local(l.t, l.base)}, l.related)
	has, err := p.Has(l.ctx, "pvc-0")
	if must(l.t, err); !has {
		l.t.Error("the sibling does not have the volume")
	}
	return p
}

// fail makes the next call of op on name fail plainly, before it is done.
func (l *late) fail(op, name string) {
	before, failed := l.faults.before, false
	l.faults.before = func(o, n string) error {
		if o == op && n == name && !failed {
			failed = true
			return errors.New("no space left on device")
		}
		return before(o, n)
	}
}

func newLate(t *testing.T, volume string) *late {
	t.Helper()
	b := newBench(t)
	l := &late{bench: b, volume: volume, faults: &faultFS{Filesystem: unlocked{local(t, b.base)}}}
	l.siblings = &directory.Siblings{}
	b.pool = poolOn(t, l.faults, l.related)
	b.create(volumeAt("pvc-0", "other")) // so that the pool is open
	l.faults.before = func(op, name string) error {
		if name != l.name || !slices.Contains([]string{"WriteFile", "Remove", "Rmdir", "Mkdir", "Rename"}, op) {
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
	l.hold, l.name, l.do = "WriteFile", spec.Volume+".json", func() error { return os.WriteFile(l.marker(), content, 0o600) }
}

func (l *late) holdRemoval() {
	l.hold, l.name, l.do = "Remove", l.volume+".json", func() error { return os.Remove(l.marker()) }
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
		"another volume by a sibling": func(l *late, spec directory.Spec) error {
			_, err := l.sibling().Create(l.ctx, volumeAt("pvc-2", spec.Path))
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
			if strings.HasPrefix(name, "another volume") {
				l.wantAdmin("volumes", "pvc-0.json", "pvc-2.json")
				return
			}
			l.wantAdmin("volumes", "pvc-0.json")
			l.create(volumeAt("pvc-2", spec.Path))
		})
	}
}

// A creation that failed is taken back. When it is tried again, what is still
// there may yet be removed.
func TestLateRemovalTakesNothingFromALiveVolume(t *testing.T) {
	spec := volumeAt("pvc-1", "a/path")
	for name, hold := range map[string]func(l *late){
		"marker": func(l *late) {
			l.fail("Mkdir", "path")
			l.holdRemoval()
		},
		"directory": func(l *late) {
			l.fail("SetAttr", "")
			l.hold, l.name, l.do = "Rmdir", "path", func() error { return os.Remove(l.path(spec.Path)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLate(t, spec.Volume)
			l.create(volumeAt("pvc-2", "a/b"))
			hold(l)
			if _, err := l.pool.Create(l.ctx, spec); err == nil || !l.held {
				t.Fatalf("Create = %v, and the removal is held up: %v", err, l.held)
			}
			// The pool forgets which directories give their rights to what is made in them.
			l.pool = poolOn(t, l.faults, l.related)
			l.create(spec)
			l.catchUp()
			l.wantAdmin("volumes", "pvc-0.json", "pvc-1.json", "pvc-2.json")
			l.wantTree("a", "a/b", "a/path", "other")
		})
	}
}

// What one way to a pool has asked for is waited for by the others.
func TestLateRemovalBySiblingTakesNoMarker(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	l := newLate(t, spec.Volume)
	sibling := l.sibling()
	l.create(spec)
	l.holdRemoval()
	wantError(t, "Discard", l.pool.Discard(l.ctx, spec.Volume), directory.ErrOutcomeUnknown)
	must(t, sibling.Discard(l.ctx, spec.Volume))
	l.do = func() error { _ = os.Remove(l.marker()); return nil }
	_, err := sibling.Create(l.ctx, spec)
	must(t, err)
	l.catchUp()
	l.wantAdmin("volumes", "pvc-0.json", "pvc-1.json")
	l.wantTree("other", "path")
}

// While nobody knows what is at a path, no claim is told to choose another one.
func TestPathInDoubtIsNoReasonToGiveUp(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	l := newLate(t, spec.Volume)
	l.create(spec)
	l.holdRemoval()
	wantError(t, "Discard", l.pool.Discard(l.ctx, spec.Volume), directory.ErrOutcomeUnknown)
	before := l.faults.before
	l.faults.before = func(op, name string) error {
		if op == "Lstat" && name == "pvc-1.json" {
			return fmt.Errorf("the server is busy: %w", directory.ErrNoAnswer)
		}
		return before(op, name)
	}
	_, err := l.pool.Create(l.ctx, volumeAt("pvc-2", spec.Path))
	if wantError(t, "Create", err, directory.ErrNoAnswer); provisioner.IsInfeasible(err) {
		t.Errorf("%v: infeasible", err)
	}
	l.faults.before = before
	l.catchUp()
	l.create(volumeAt("pvc-2", spec.Path))
}

// The directory was moved into the archive, and the answer was lost; the next
// call finds it there, or where it was while it is moved after all.
func TestArchivedVolumeKeepsItsMarker(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	spec.OnDelete = directory.OnDeleteArchive
	l := newLate(t, spec.Volume)
	l.create(spec)
	l.data(spec.Path)
	const archived = "path-pvc-1"
	moves := 0
	l.faults.before = func(op, name string) error {
		if op != "Rename" || name != "path" {
			return nil
		}
		if moves++; moves == 1 {
			return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
		}
		if moves == 2 {
			must(t, os.Rename(l.path("path"), l.path(".berth/archive/"+archived)))
			return fs.ErrExist
		}
		return nil
	}
	wantError(t, "Delete", l.delete(spec), directory.ErrOutcomeUnknown)
	must(t, l.delete(spec))
	l.wantAdmin("archive", archived, archived+".json")
	l.wantData(".berth/archive/" + archived)
}

// The marker was moved into the archive, and the answer was lost. When nobody
// asks again, the path is free all the same.
func TestPathOfAnArchivedVolumeIsFree(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	spec.OnDelete = directory.OnDeleteArchive
	l := newLate(t, spec.Volume)
	l.create(spec)
	l.faults.after = func(op, name string) error {
		if op == "Rename" && name == "pvc-1.json" {
			return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
		}
		return nil
	}
	wantError(t, "Delete", l.delete(spec), directory.ErrOutcomeUnknown)
	l.create(volumeAt("pvc-2", spec.Path))
}

// A volume that has lost its marker keeps others out of it.
func TestVolumeWithoutMarkerKeepsItsPath(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	l := newLate(t, spec.Volume)
	l.create(spec)
	l.data(spec.Path)
	must(t, os.Remove(l.marker()))
	wantError(t, "Delete", l.delete(spec), directory.ErrNotOwned)
	_, err := l.pool.Create(l.ctx, volumeAt("pvc-2", spec.Path+"/below"))
	wantError(t, "Create in it", err, directory.ErrConflict)
	l.wantData(spec.Path)
}

// A volume has grown, and the answer was lost: it is promised what it has.
func TestLateGrowthIsPromised(t *testing.T) {
	spec := volumeAt("pvc-1", "path")
	l := newLate(t, spec.Volume)
	l.create(spec)
	l.faults.after = func(op, name string) error {
		if op == "WriteFile" {
			return fmt.Errorf("the server is silent: %w", directory.ErrOutcomeUnknown)
		}
		return nil
	}
	grown := 10 * spec.SizeBytes
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
	wantError(t, "Resize", l.pool.Resize(l.ctx, spec.Volume, expect, grown), directory.ErrOutcomeUnknown)
	l.faults.after = nil
	must(t, l.pool.Resize(l.ctx, spec.Volume, expect, grown))
	if got, want := l.pool.Promised(nil), grown+spec.SizeBytes; got != want {
		t.Errorf("promised %d bytes, want %d", got, want)
	}
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
