package directory_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/test/lib/oddfs"
)

// strict is a volume that few may use, in a directory made for it.
func strict() directory.Spec {
	spec := specFor("team/vol")
	spec.Mode = 0o750
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = new(uint32(1000)), new(uint32(1001))
	}
	return spec
}

func odd(b *bench, change func(*oddfs.FS)) *directory.Pool {
	b.t.Helper()
	filesystem := &oddfs.FS{Filesystem: local(b.t, b.base)}
	change(filesystem)
	return poolOn(b.t, filesystem, func(*directory.Options) {})
}

func TestRightsAreSetWhateverMkdirGave(t *testing.T) {
	for _, mode := range []uint32{0o700, 0o750, 0o770, 0o777, 0o1777, 0o2777, 0o2755, 0o500} {
		t.Run(fmt.Sprintf("%04o", mode), func(t *testing.T) {
			b, spec := newBench(t), strict()
			m, err := odd(b, func(f *oddfs.FS) { f.MkdirMode = mode }).Create(b.ctx, spec)
			must(t, err)
			wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)
			info, err := os.Stat(b.path("team"))
			must(t, err)
			if info.Mode().Perm() != 0o755 {
				t.Errorf("mode of the directory above is %v", info.Mode())
			}
			if m.Rights != "" {
				t.Errorf("told: %s", m.Rights)
			}
		})
	}
}

func TestRightsThatDoNotTakeAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*oddfs.FS)
		want   []string
	}{
		"wider":       {func(f *oddfs.FS) { f.MkdirMode, f.Chmod = 0o777, oddfs.Ignored }, []string{"mode 0777 instead of 0750 (wider)", "a directory above it 0777 instead of 0755 (wider)"}},
		"narrower":    {func(f *oddfs.FS) { f.MkdirMode, f.Chmod = 0o700, oddfs.Ignored }, []string{"mode 0700 instead of 0750"}},
		"as asked":    {func(f *oddfs.FS) { f.MkdirMode, f.Chmod = 0o750, oddfs.Ignored }, nil},
		"setgid":      {func(f *oddfs.FS) { f.MkdirMode, f.Chmod = 0o2750, oddfs.Ignored }, nil},
		"refused, it": {func(f *oddfs.FS) { f.MkdirMode, f.Chmod, f.Spared = 0o750, oddfs.Refused, []string{".berth", "team"} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b, spec := newBench(t), strict()
			spec.UID, spec.GID = nil, nil
			pool := odd(b, c.change)
			m, err := pool.Create(b.ctx, spec)
			must(t, err)
			if want := strings.Join(c.want, ", "); m.Rights != want {
				t.Errorf("told %q, want %q", m.Rights, want)
			}
			m, err = pool.Create(b.ctx, spec) // the answer was lost
			must(t, err)
			if len(c.want) > 0 && !strings.HasPrefix(m.Rights, c.want[0]) {
				t.Errorf("told %q when asked again", m.Rights)
			}
		})
	}
}

func TestOwnerThatDoesNotTakeIsTold(t *testing.T) {
	needRoot(t)
	b := newBench(t)
	m, err := odd(b, func(f *oddfs.FS) { f.Chown = oddfs.Ignored }).Create(b.ctx, strict())
	must(t, err)
	if want := "user 0 instead of 1000, group 0 instead of 1001"; m.Rights != want {
		t.Errorf("told %q, want %q", m.Rights, want)
	}
}

func TestChangeOfRightsThatIsRefusedFailsWithWhatThereIs(t *testing.T) {
	b, spec := newBench(t), strict()
	spec.UID, spec.GID = nil, nil
	pool := odd(b, func(f *oddfs.FS) { f.MkdirMode, f.Chmod, f.Spared = 0o777, oddfs.Refused, []string{".berth", "team"} })
	_, err := pool.Create(b.ctx, spec)
	wantError(t, "Create", err, os.ErrPermission)
	if err != nil && !strings.Contains(err.Error(), "mode 0777 instead of 0750") {
		t.Errorf("%v does not say what it has", err)
	}
	b.wantTree()
	b.wantAdmin("volumes")

	pool = odd(newBench(t), func(f *oddfs.FS) { f.MkdirMode, f.Chmod = 0o777, oddfs.Refused })
	_, err = pool.Create(b.ctx, spec)
	wantError(t, "Create where .berth can't be closed", err, os.ErrPermission)
	for _, word := range []string{".berth", "mode 0777", "0700"} {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

// TestRightsAreSetAfterACrash ends the process before and after each call of a
// Create on a filesystem whose directories are open to all at first.
func TestRightsAreSetAfterACrash(t *testing.T) {
	for kind, fault := range faultKinds {
		t.Run(kind, func(t *testing.T) {
			for nth := 1; nth <= enoughCalls; nth++ {
				b, spec, hit := newFastBench(t), strict(), false
				faults := fault(nth, &hit)
				faults.serialise()
				faults.Filesystem = &oddfs.FS{Filesystem: local(t, b.base), MkdirMode: 0o777}
				faulty := poolOn(t, faults, func(*directory.Options) {})
				_, failed := faulty.Create(b.ctx, spec)
				must(t, faulty.Close())

				pool := odd(b, func(f *oddfs.FS) { f.MkdirMode = 0o777 })
				_, err := pool.Create(b.ctx, spec)
				must(t, err)
				wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)
				if info, err := os.Stat(b.path("team")); err != nil || info.Mode().Perm() != 0o755 {
					t.Errorf("mode of the directory above: %v, %v", info.Mode(), err)
				}
				must(t, pool.Close())
				if t.Failed() {
					t.Fatalf("call %d, which failed with: %v", nth, failed)
				}
				if !hit {
					return
				}
			}
			t.Fatal("the operation never gets through")
		})
	}
}

// TestAMarkerIsWrittenOnceWhereTheModeTells: a marker is made durable, which is most of
// what a Create costs. Where a filesystem gives new directories another mode, its first
// directory tells.
func TestAMarkerIsWrittenOnceWhereTheModeTells(t *testing.T) {
	b, writes := newBench(t), map[string]int{}
	filesystem := &oddfs.FS{Filesystem: local(t, b.base), WroteFile: func(name string, _ []byte) { writes[name]++ }}
	pool := poolOn(t, filesystem, func(*directory.Options) {})
	create := func(volume, parent string) int {
		t.Helper()
		spec := strict()
		spec.Volume, spec.Path = volume, parent+"/"+volume
		_, err := pool.Create(b.ctx, spec)
		must(t, err)
		wantAttr(t, b.path(spec.Path), 0o750, *spec.UID, *spec.GID)
		return writes[volume+".json"]
	}
	for _, step := range []struct {
		volume, parent string
		gives          uint32
		want           int
	}{
		{"first", "team", 0, 2}, {"second", "team", 0, 1}, {"third", "team", 0, 1},
		{"apart", "another", 0, 2}, {"beside", "another", 0, 1},
		{"inherits", "team", 0o770, 3}, {"next", "team", 0o770, 2}, {"other", "another", 0, 1},
	} {
		filesystem.MkdirMode = step.gives
		if got := create(step.volume, step.parent); got != step.want {
			t.Errorf("the marker of %s was written %d times, want %d", step.volume, got, step.want)
		}
	}
}

// TestRightsAreSetAfterACrashWhereTheModeTells: with no note in the marker.
func TestRightsAreSetAfterACrashWhereTheModeTells(t *testing.T) {
	for kind, fault := range faultKinds {
		t.Run(kind, func(t *testing.T) {
			for nth := 1; nth <= enoughCalls; nth++ {
				b, spec, hit := newFastBench(t), strict(), false
				faults := fault(nth, &hit)
				faults.serialise()
				before, after := faults.before, faults.after
				faults.Filesystem, faults.before, faults.after = local(t, b.base), nil, nil
				faulty := poolOn(t, faults, func(*directory.Options) {})
				earlier := spec
				earlier.Volume, earlier.Path = "pvc-earlier", "other/vol"
				_, err := faulty.Create(b.ctx, earlier)
				must(t, err)
				faults.before, faults.after = before, after
				_, failed := faulty.Create(b.ctx, spec)
				must(t, faulty.Close())

				pool := odd(b, func(*oddfs.FS) {})
				_, err = pool.Create(b.ctx, spec)
				must(t, err)
				wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)
				must(t, pool.Close())
				if t.Failed() {
					t.Fatalf("call %d, which failed with: %v", nth, failed)
				}
				if !hit {
					return
				}
			}
			t.Fatal("the operation never gets through")
		})
	}
}

// TestRightsAreSetAfterACrashWhereModesHaveChanged: the directory above was removed, and
// what is made in its place inherits more.
func TestRightsAreSetAfterACrashWhereModesHaveChanged(t *testing.T) {
	for kind, fault := range faultKinds {
		t.Run(kind, func(t *testing.T) {
			for nth := 1; nth <= enoughCalls; nth++ {
				b, spec, hit := newFastBench(t), strict(), false
				faults := fault(nth, &hit)
				faults.serialise()
				before, after := faults.before, faults.after
				filesystem := &oddfs.FS{Filesystem: local(t, b.base)}
				faults.Filesystem, faults.before, faults.after = filesystem, nil, nil
				faulty := poolOn(t, faults, func(*directory.Options) {})
				earlier := spec
				earlier.Volume, earlier.Path = "pvc-earlier", "team/earlier"
				_, err := faulty.Create(b.ctx, earlier)
				must(t, err)
				must(t, faulty.Delete(b.ctx, earlier.Volume, directory.Expectation{ClaimUID: earlier.ClaimUID, Path: earlier.Path, OnDelete: earlier.OnDelete}))
				filesystem.MkdirMode = 0o777
				faults.before, faults.after = before, after
				_, failed := faulty.Create(b.ctx, spec)
				must(t, faulty.Close())

				pool := odd(b, func(f *oddfs.FS) { f.MkdirMode = 0o777 })
				_, err = pool.Create(b.ctx, spec)
				must(t, err)
				wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)
				if info, err := os.Stat(b.path("team")); err != nil || info.Mode().Perm() != 0o755 {
					t.Errorf("mode of the directory above: %v, %v", info.Mode(), err)
				}
				must(t, pool.Close())
				if t.Failed() {
					t.Fatalf("call %d, which failed with: %v", nth, failed)
				}
				if !hit {
					return
				}
			}
			t.Fatal("the operation never gets through")
		})
	}
}

// TestADirectoryThatAppearsMeanwhileIsRefused, also when it turns out at the same time
// that the mode of new directories does not tell any more.
func TestADirectoryThatAppearsMeanwhileIsRefused(t *testing.T) {
	b := newBench(t)
	filesystem := &oddfs.FS{Filesystem: local(t, b.base)}
	pool := poolOn(t, filesystem, func(*directory.Options) {})
	specOf := func(volume string) directory.Spec {
		spec := strict()
		spec.Volume, spec.Path = volume, "team/"+volume
		return spec
	}
	_, err := pool.Create(b.ctx, specOf("first"))
	must(t, err)
	filesystem.WroteFile = func(name string, _ []byte) {
		if name != "second.json" {
			return
		}
		filesystem.WroteFile, filesystem.MkdirMode = nil, 0o770
		_, err := pool.Create(b.ctx, specOf("beside"))
		must(t, err)
		must(t, os.Mkdir(b.path("team/second"), 0o755))
	}
	_, err = pool.Create(b.ctx, specOf("second"))
	wantError(t, "Create", err, directory.ErrExists)
	if info, err := os.Stat(b.path("team/second")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("somebody's directory has become %v, %v", info, err)
	}
}

// A database closes its directory to all but itself; a controller with an old cache
// asks for the volume once more.
func TestRightsThatATenantHasSetStay(t *testing.T) {
	for _, mode := range []uint32{0o700, 0o777, 0o2770} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%04o, restart=%t", mode, restart), func(t *testing.T) {
				b, spec := newBench(t), strict()
				b.create(spec)
				uid, gid := *spec.UID, *spec.GID
				if os.Geteuid() == 0 {
					uid, gid = 999, 998
					must(t, os.Chown(b.path("team/vol"), int(uid), int(gid)))
				}
				dir, err := local(t, b.path("team/vol")).Root(b.ctx)
				must(t, err)
				must(t, errors.Join(dir.SetAttr(b.ctx, directory.Attr{Mode: mode}), dir.Close()))
				b.data("team/vol")
				if restart {
					b.restart()
				}
				b.create(spec)
				wantAttr(t, b.path("team/vol"), mode, uid, gid)
			})
		}
	}
}

// Markers of earlier versions don't say whether a volume was finished.
func TestVolumeThatAnEarlierVersionHasBegunIsFinished(t *testing.T) {
	b, spec := newBench(t), strict()
	b.create(spec)
	b.editMarker("pvc-1", func(m map[string]any) {
		if _, known := m["unfinished"]; known {
			t.Error("the marker of a finished volume holds a field that earlier versions don't know")
		}
	})
	must(t, os.Chmod(b.path("team/vol"), 0o700))
	b.restart()
	b.create(spec)
	wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)

	must(t, os.Remove(b.path("team/vol"))) // it got no further than the marker
	b.create(spec)
	wantAttr(t, b.path("team/vol"), 0o750, *spec.UID, *spec.GID)
}
