package directory_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-logr/logr/funcr"

	"github.com/berth-storage/berth/provisioner/directory"
)

// damage ruins the marker of pvc-1.
var damage = map[string]func(t *testing.T, b *bench){
	"empty":     func(t *testing.T, b *bench) { write(t, b, "") },
	"truncated": func(t *testing.T, b *bench) { write(t, b, `{"version":1,"volume":"pvc-1","claimNa`) },
	"huge":      func(t *testing.T, b *bench) { write(t, b, strings.Repeat(" ", 65<<10)+"{}") },
	"nonsense":  func(t *testing.T, b *bench) { write(t, b, "\x00\xff\x00") },
	"an array":  func(t *testing.T, b *bench) { write(t, b, "[]") },
	"more than one": func(t *testing.T, b *bench) {
		data, err := os.ReadFile(b.path(".berth/volumes/pvc-1.json"))
		must(t, err)
		write(t, b, string(data)+string(data))
	},
	"later version": func(_ *testing.T, b *bench) {
		b.editMarker("pvc-1", func(m map[string]any) { m["version"] = 2; m["new"] = true })
	},
	"another volume's": func(_ *testing.T, b *bench) { set(b, "volume", "pvc-2") },
	"no claim":         func(_ *testing.T, b *bench) { set(b, "claimUID", "") },
	"path upwards":     func(_ *testing.T, b *bench) { set(b, "path", "../../etc") },
	"path absolute":    func(_ *testing.T, b *bench) { set(b, "path", "/etc") },
	"path empty":       func(_ *testing.T, b *bench) { set(b, "path", "") },
	"Berth's own path": func(_ *testing.T, b *bench) { set(b, "path", ".berth/volumes") },
	"onDelete":         func(_ *testing.T, b *bench) { set(b, "onDelete", "shred") },
	"parents":          func(_ *testing.T, b *bench) { set(b, "parentsMade", 5) },
	"fewer parents":    func(_ *testing.T, b *bench) { set(b, "parentsMade", -1) },
	"a symlink": func(t *testing.T, b *bench) {
		file := b.path(".berth/volumes/pvc-1.json")
		must(t, os.Rename(file, b.path("vol/marker")))
		must(t, os.Symlink(b.path("vol/marker"), file))
	},
	"a directory": func(t *testing.T, b *bench) {
		file := b.path(".berth/volumes/pvc-1.json")
		must(t, os.Remove(file))
		must(t, os.Mkdir(file, 0o700))
	},
	"a fifo": func(t *testing.T, b *bench) {
		file := b.path(".berth/volumes/pvc-1.json")
		must(t, os.Remove(file))
		must(t, syscall.Mkfifo(file, 0o600))
	},
}

func write(t *testing.T, b *bench, content string) {
	t.Helper()
	must(t, os.WriteFile(b.path(".berth/volumes/pvc-1.json"), []byte(content), 0o600))
}

func set(b *bench, field string, value any) {
	b.editMarker("pvc-1", func(m map[string]any) { m[field] = value })
}

func TestDamagedMarkerIsNotActedOn(t *testing.T) {
	for name, ruin := range damage {
		for _, restart := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				b := newBench(t)
				b.create(specFor("vol"))
				b.data("vol")
				good, err := os.ReadFile(b.path(".berth/volumes/pvc-1.json"))
				must(t, err)
				ruin(t, b)
				if restart {
					b.restart()
				}
				for op, err := range map[string]error{
					"Delete":  b.delete(specFor("vol")),
					"Discard": b.pool.Discard(b.ctx, "pvc-1"),
				} {
					wantError(t, op, err, directory.ErrDamagedMarker)
				}
				_, err = b.pool.Create(b.ctx, specFor("vol"))
				wantError(t, "Create", err, directory.ErrDamagedMarker)
				b.wantData("vol")

				// The others are served, and the damage is reported.
				b.create(volumeAt("pvc-2", "two"))
				var reported error
				seen := 0
				for _, err := range b.pool.Volumes(b.ctx) {
					reported = errors.Join(reported, err)
					if err == nil {
						seen++
					}
				}
				if seen != 1 || !strings.Contains(reported.Error(), "pvc-1") {
					t.Errorf("Volumes yielded %d volumes and %v", seen, reported)
				}
				must(t, b.delete(volumeAt("pvc-2", "two")))

				// Repaired by hand, it counts again.
				must(t, os.Remove(b.path(".berth/volumes/pvc-1.json")))
				must(t, os.WriteFile(b.path(".berth/volumes/pvc-1.json"), good, 0o600))
				must(t, b.delete(specFor("vol")))
				b.wantAdmin("volumes")
			})
		}
	}
}

func TestUnknownDirectoriesAreClosedWhileAMarkerIsDamaged(t *testing.T) {
	b := newBench(t)
	b.create(specFor("lost"))
	b.create(volumeAt("pvc-2", "team/known"))
	must(t, os.Mkdir(b.path("lost/inside"), 0o755))
	write(t, b, "")
	b.restart()

	_, err := b.pool.Create(b.ctx, volumeAt("pvc-3", "lost/inside/vol"))
	wantError(t, "Create in what may be a volume", err, directory.ErrDamagedMarker)
	wantWords(t, err, ".berth/volumes/pvc-1.json in the pool", "repair it, or remove it")
	adopt := volumeAt("pvc-3", "lost")
	adopt.Adopt = true
	_, err = b.pool.Create(b.ctx, adopt)
	wantError(t, "adopt what may be a volume", err, directory.ErrDamagedMarker)
	wantWords(t, err, ".berth/volumes/pvc-1.json in the pool", "repair it, or remove it")
	b.create(volumeAt("pvc-4", "team/new"))
	b.create(volumeAt("pvc-5", "new/vol"))

	must(t, os.Remove(b.path(".berth/volumes/pvc-1.json")))
	b.create(volumeAt("pvc-3", "lost/inside/vol")) // no restart needed
}

func TestTwoMarkersForOneDirectoryAreNotBothBelieved(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	b.data("vol")
	data, err := os.ReadFile(b.path(".berth/volumes/pvc-1.json"))
	must(t, err)
	var m directory.Marker
	must(t, json.Unmarshal(data, &m))
	m.Volume, m.Created = "pvc-2", m.Created.Add(1)
	data, err = json.Marshal(m)
	must(t, err)
	must(t, os.WriteFile(b.path(".berth/volumes/pvc-2.json"), data, 0o600))
	for _, restart := range []bool{false, true} {
		if restart {
			b.restart()
		}
		copied := specFor("vol")
		copied.Volume = "pvc-2"
		wantError(t, "Delete", b.delete(copied), directory.ErrNotOwned)
		wantError(t, "Discard", b.pool.Discard(b.ctx, "pvc-2"), directory.ErrNotOwned)
		b.wantData("vol")
	}
	must(t, b.delete(specFor("vol")))
}

// TestBothOfTwoMarkersAreNamed: which one is right only an administrator can tell.
func TestBothOfTwoMarkersAreNamed(t *testing.T) {
	for name, second := range map[string]string{"the same": "team/vol", "inside": "team/vol/sub", "around": "team"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(specFor("team/vol"))
			data, err := os.ReadFile(b.path(".berth/volumes/pvc-1.json"))
			must(t, err)
			var m directory.Marker
			must(t, json.Unmarshal(data, &m))
			m.Volume, m.Path, m.ParentsMade, m.Created = "pvc-2", second, 0, m.Created.Add(1)
			data, err = json.Marshal(m)
			must(t, err)
			must(t, os.WriteFile(b.path(".berth/volumes/pvc-2.json"), data, 0o600))
			var said []string
			log := funcr.New(func(_, args string) { said = append(said, args) }, funcr.Options{})
			b.restart()
			must(t, b.pool.Close())
			b.pool = newPoolWith(t, b.base, func(o *directory.Options) { o.Log = log })
			must(t, b.pool.Open(b.ctx))
			if len(said) != 1 {
				t.Fatalf("said %q", said)
			}
			err = errors.New(said[0])
			wantWords(t, err, `"volume"="pvc-2"`, `"path"="`+second+`"`, `"otherVolume"="pvc-1"`, `"otherPath"="team/vol"`, "whose PersistentVolume exists",
				".berth/volumes/pvc-1.json", ".berth/volumes/pvc-2.json")
			if strings.Contains(said[0], "pathPattern") {
				t.Errorf("%s says what has nothing to do with it", said[0])
			}
			adopt := volumeAt("pvc-3", "team/vol")
			adopt.Adopt = true
			if _, err = b.pool.Create(b.ctx, adopt); err == nil {
				t.Error("adopted")
			}
		})
	}
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

func TestLeftOversOfACrashAreRemoved(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.WriteFile(b.path(".berth/volumes/"+directory.TempPrefix+"x"), []byte("half"), 0o600))
	b.restart()
	b.create(specFor("vol"))
	b.wantAdmin("volumes", "pvc-1.json")
}

func TestMarkerRemovedByHandFreesItsPath(t *testing.T) {
	b := newBench(t)
	b.create(specFor("vol"))
	must(t, os.Remove(b.path(".berth/volumes/pvc-1.json")))
	wantError(t, "Delete", b.delete(specFor("vol")), directory.ErrNotOwned)
	must(t, os.Remove(b.path("vol")))
	must(t, b.delete(specFor("vol")))
	b.create(volumeAt("pvc-2", "vol"))
}
