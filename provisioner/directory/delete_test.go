package directory_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

func TestDeleteMovesToTheTrashAndPrunes(t *testing.T) {
	b := newBench(t)
	b.create(volumeAt("pvc-1", "team/app/one"))
	b.create(volumeAt("pvc-2", "team/two"))
	b.data("team/app/one")
	must(t, b.delete(volumeAt("pvc-1", "team/app/one")))
	b.wantTree("team", "team/two")
	b.wantAdmin("volumes", "pvc-2.json")
	if n := b.trashCount(); n != 1 {
		t.Errorf("%d entries in the trash", n)
	}
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantAdmin("trash")
	must(t, b.delete(volumeAt("pvc-2", "team/two")))
	b.wantTree()
}

func TestDeleteIsIdempotent(t *testing.T) {
	for _, onDelete := range []directory.OnDelete{directory.OnDeleteDelete, directory.OnDeleteArchive, directory.OnDeleteRetain} {
		b := newBench(t)
		spec := specFor("team/vol")
		spec.OnDelete = onDelete
		b.create(spec)
		b.data("team/vol")
		must(t, b.delete(spec))
		must(t, b.delete(spec))
		b.restart()
		must(t, b.delete(spec))
	}
}

func TestDeleteAgainSparesThePathsNextVolume(t *testing.T) {
	for _, next := range []string{"team/vol", "team/vol/below", "team"} {
		b := newBench(t)
		old := volumeAt("pvc-old", "team/vol")
		b.create(old)
		must(t, b.delete(old))
		b.create(volumeAt("pvc-new", next))
		b.data(next)
		must(t, b.delete(old))
		b.wantData(next)
	}
}

func TestPruneSparesWhatAnAdministratorMade(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(b.path(".berth"), 0o700))
	must(t, os.Mkdir(b.path("team"), 0o750))
	b.create(specFor("team/app/one"))
	b.restart()
	b.create(volumeAt("pvc-2", "team/app/two"))
	must(t, b.delete(specFor("team/app/one")))
	b.wantTree("team", "team/app", "team/app/two")
	must(t, b.delete(volumeAt("pvc-2", "team/app/two")))
	b.wantTree("team")
}

func TestPruneSparesWhatIsNotEmpty(t *testing.T) {
	b := newBench(t)
	b.create(specFor("team/app/one"))
	must(t, os.WriteFile(b.path("team/note"), nil, 0o644))
	must(t, b.delete(specFor("team/app/one")))
	b.wantTree("team", "team/note")
}

func TestArchiveKeepsDataAndMarker(t *testing.T) {
	b := newBench(t)
	spec := specFor("team/app/vol")
	spec.OnDelete = directory.OnDeleteArchive
	made := b.create(spec)
	b.data("team/app/vol")
	must(t, b.delete(spec))
	b.wantTree()
	b.wantAdmin("volumes")
	b.wantAdmin("archive", "team_app_vol-pvc-1", "team_app_vol-pvc-1.json")
	b.wantData(".berth/archive/team_app_vol-pvc-1")
	data, err := os.ReadFile(b.path(".berth/archive/team_app_vol-pvc-1.json"))
	must(t, err)
	var kept directory.Marker
	must(t, json.Unmarshal(data, &kept))
	if diff := cmp.Diff(made, kept); diff != "" {
		t.Error(diff)
	}
	must(t, b.pool.PurgeTrash(b.ctx))
	b.wantData(".berth/archive/team_app_vol-pvc-1")
}

func TestArchivesDoNotCollide(t *testing.T) {
	b := newBench(t)
	for i, path := range []string{"a/b", "a_b", "a/b", "ns-claim-pvc-1", "pvc-1"} {
		spec := specFor(path)
		spec.OnDelete = directory.OnDeleteArchive
		b.create(spec)
		must(t, os.WriteFile(b.path(path+"/data"), []byte{byte('0' + i)}, 0o644))
		must(t, b.delete(spec))
	}
	var dirs []string
	for _, name := range names(t, b.path(".berth/archive")) {
		if !strings.HasSuffix(name, ".json") {
			data, err := os.ReadFile(b.path(".berth/archive/" + name + "/data"))
			must(t, err)
			dirs = append(dirs, name+"="+string(data))
		}
	}
	want := []string{"a_b-pvc-1-2=1", "a_b-pvc-1-3=2", "a_b-pvc-1=0", "ns-claim-pvc-1=3", "pvc-1=4"}
	slices.Sort(dirs)
	slices.Sort(want)
	if diff := cmp.Diff(want, dirs); diff != "" {
		t.Error(diff)
	}
}

func TestRetainLeavesTheDirectory(t *testing.T) {
	b := newBench(t)
	spec := specFor("vol")
	spec.OnDelete = directory.OnDeleteRetain
	b.create(spec)
	b.data("vol")
	must(t, b.delete(spec))
	b.wantData("vol")
	b.wantAdmin("volumes")
	_, err := b.pool.Create(b.ctx, volumeAt("pvc-2", "vol"))
	wantError(t, "Create on what was retained", err, directory.ErrExists)
}

func TestTheMoreCarefulOnDeleteCounts(t *testing.T) {
	for _, test := range []struct {
		marker, volume, want directory.OnDelete
	}{
		{directory.OnDeleteDelete, directory.OnDeleteArchive, directory.OnDeleteArchive},
		{directory.OnDeleteDelete, directory.OnDeleteRetain, directory.OnDeleteRetain},
		{directory.OnDeleteArchive, directory.OnDeleteDelete, directory.OnDeleteArchive},
		{directory.OnDeleteRetain, directory.OnDeleteArchive, directory.OnDeleteRetain},
		{directory.OnDeleteDelete, "", directory.OnDeleteDelete},
		{directory.OnDeleteDelete, "nonsense", directory.OnDeleteDelete},
		{directory.OnDeleteArchive, "nonsense", directory.OnDeleteArchive},
	} {
		if got := test.marker.Careful(test.volume); got != test.want {
			t.Errorf("marker %q, volume %q: %q, want %q", test.marker, test.volume, got, test.want)
		}
	}
}

func TestForgedVolumesTouchNothing(t *testing.T) {
	honest := volumeAt("pvc-1", "team/vol")
	for name, forge := range map[string]func(*directory.Spec){
		"another claim":           func(s *directory.Spec) { s.ClaimUID = "forged" },
		"another path":            func(s *directory.Spec) { s.Path = "victim" },
		"the base's parent":       func(s *directory.Spec) { s.Path = ".." },
		"the base":                func(s *directory.Spec) { s.Path = "" },
		"a parent":                func(s *directory.Spec) { s.Path = "team" },
		"Berth's own":             func(s *directory.Spec) { s.Path = ".berth/volumes" },
		"by way of dots":          func(s *directory.Spec) { s.Path = "team/../victim" },
		"an absolute path":        func(s *directory.Spec) { s.Path = "/etc" },
		"no claim":                func(s *directory.Spec) { s.ClaimUID = "" },
		"unknown, at a directory": func(s *directory.Spec) { s.Volume = "pvc-9"; s.Path = "unowned" },
		"unknown, dots":           func(s *directory.Spec) { s.Volume = "pvc-9"; s.Path = "../x" },
		"unknown, Berth's own":    func(s *directory.Spec) { s.Volume = "pvc-9"; s.Path = ".berth" },
		"a name that is a path":   func(s *directory.Spec) { s.Volume = "../volumes/pvc-1" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.create(honest)
			b.create(volumeAt("pvc-victim", "victim"))
			must(t, os.Mkdir(b.path("unowned"), 0o755))
			for _, path := range []string{"team/vol", "victim", "unowned"} {
				b.data(path)
			}
			before := tree(t, b.base)
			forged := honest
			forge(&forged)
			if err := b.delete(forged); err == nil {
				t.Error("no error")
			}
			if diff := cmp.Diff(before, tree(t, b.base)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestForgedVolumeWithAnOwnedPathTouchesNothing(t *testing.T) {
	b := newBench(t)
	b.create(volumeAt("pvc-victim", "victim"))
	b.data("victim")
	for _, path := range []string{"victim", "victim/data"} {
		must(t, b.delete(volumeAt("pvc-9", path))) // nothing of pvc-9 is left to delete
	}
	b.wantData("victim")
}

func TestReplacedDirectoryIsRefused(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, at, elsewhere string){
		"symlink":            func(t *testing.T, at, elsewhere string) { must(t, os.Symlink(elsewhere, at)) },
		"symlink to volume":  func(t *testing.T, at, _ string) { must(t, os.Symlink("victim", at)) },
		"relative symlink":   func(t *testing.T, at, _ string) { must(t, os.Symlink("../victim", at)) },
		"file":               func(t *testing.T, at, _ string) { must(t, os.WriteFile(at, nil, 0o644)) },
		"mount point":        func(t *testing.T, at, elsewhere string) { bindMount(t, elsewhere, at) },
		"mount of a volume":  func(t *testing.T, at, _ string) { bindMount(t, at+"/../../victim", at) },
		"symlink as the dir": func(t *testing.T, at, _ string) { must(t, os.Symlink(".", at)) },
	} {
		for _, replaced := range []string{"team", "team/vol"} {
			for op, call := range map[string]func(*bench, directory.Spec) error{
				"Delete":  (*bench).delete,
				"Discard": func(b *bench, s directory.Spec) error { return b.pool.Discard(b.ctx, s.Volume) },
			} {
				if name == "mount of a volume" && replaced == "team" {
					continue
				}
				t.Run(fmt.Sprintf("%s at %s, %s", name, replaced, op), func(t *testing.T) {
					b := newBench(t)
					elsewhere := t.TempDir()
					must(t, os.Mkdir(elsewhere+"/vol", 0o755))
					b.create(volumeAt("pvc-victim", "victim"))
					b.data("victim")
					spec := specFor("team/vol")
					b.create(spec)
					must(t, os.Rename(b.path(replaced), b.path("aside")))
					plant(t, b.path(replaced), elsewhere)
					err := call(b, spec)
					gone := name == "symlink as the dir" && replaced == "team"
					if err == nil && !gone {
						t.Error("no error")
					}
					b.wantData("victim")
					b.wantAdmin("volumes", "pvc-1.json", "pvc-victim.json")
					b.wantAdmin("trash")
					if got := names(t, elsewhere); len(got) != 1 {
						t.Errorf("where the link leads: %v", got)
					}
				})
			}
		}
	}
}

func TestMissingDirectoryIsDeleted(t *testing.T) {
	for _, missing := range []string{"team/vol", "team"} {
		for _, onDelete := range []directory.OnDelete{directory.OnDeleteDelete, directory.OnDeleteArchive} {
			b := newBench(t)
			spec := specFor("team/vol")
			spec.OnDelete = onDelete
			b.create(spec)
			must(t, os.RemoveAll(b.path(missing)))
			must(t, b.delete(spec))
			b.wantTree()
			b.wantAdmin("volumes")
			b.wantAdmin("archive")
		}
	}
}

func TestDiscardNeverDestroysData(t *testing.T) {
	b := newBench(t)
	b.create(specFor("team/vol"))
	b.data("team/vol")
	before := tree(t, b.base)
	wantError(t, "Discard", b.pool.Discard(b.ctx, "pvc-1"), provisioner.ErrNotEmpty)
	if diff := cmp.Diff(before, tree(t, b.base)); diff != "" {
		t.Error(diff)
	}
	must(t, os.Remove(b.path("team/vol/data")))
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantTree()
	b.wantAdmin("volumes")
}

func TestDiscardOfAMissingDirectoryRemovesTheMarker(t *testing.T) {
	b := newBench(t)
	b.create(specFor("team/vol"))
	must(t, os.RemoveAll(b.path("team")))
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantAdmin("volumes")
}

func TestVolumesYieldsTheMarkers(t *testing.T) {
	b := newBench(t)
	want := map[string]provisioner.Record{}
	for i := range 5 {
		m := b.create(volumeAt(fmt.Sprintf("pvc-%d", i), fmt.Sprintf("vol-%d", i)))
		want[m.Volume] = m.Record()
	}
	got := map[string]provisioner.Record{}
	for r, err := range b.pool.Volumes(b.ctx) {
		must(t, err)
		got[r.Volume] = r
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	stats, err := b.pool.Stats(b.ctx)
	must(t, err)
	if diff := cmp.Diff(directory.Stats{Volumes: 5}, stats); diff != "" {
		t.Error(diff)
	}
}
