package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

// serve has a node serve a directory from now on.
func (f *fleet) serve(name, base string) {
	f.t.Helper()
	server, err := hostpath.NewLocal(node.Options{NodeName: name, Pools: map[string][]string{"default": {base}}})
	must(f.t, err)
	f.t.Cleanup(func() { server.Close() })
	if f.nodes[name] == nil {
		f.nodes[name] = &fleetNode{Node: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: "host-" + name}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}}
	}
	f.nodes[name].base, f.nodes[name].server = base, server
}

// rename has another node serve what the first one did, which is gone.
func (f *fleet) rename(from, to string) {
	f.t.Helper()
	gone := f.nodes[from]
	must(f.t, gone.server.Close())
	delete(f.nodes, from)
	f.serve(to, gone.base)
}

// copy has node b serve a copy of node a's directory.
func (f *fleet) copy() {
	f.t.Helper()
	base := f.t.TempDir()
	must(f.t, os.CopyFS(base, os.DirFS(f.nodes["a"].base)))
	f.serve("b", base)
}

func (f *fleet) meet() {
	f.t.Helper()
	must(f.t, f.driver.MeetNodes(f.ctx))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v, want one that says %q", err, word)
		}
	}
}

// TestVolumesOfARenamedNodeAreGrownAndEnded, by the id of their pool.
func TestVolumesOfARenamedNodeAreGrownAndEnded(t *testing.T) {
	f := newFleet(t, "old", "other")
	volume := f.provision(on("old"))
	f.meet()
	f.rename("old", "new")
	f.meet()
	if from, to, moved := f.driver.Moved(volume); !moved || from != "old" || to != "new" {
		t.Errorf("Moved = %s, %s, %t", from, to, moved)
	}
	if _, err := f.driver.Expand(f.ctx, volume, 2<<30); err != nil {
		t.Errorf("Expand = %v", err)
	}
	must(t, f.driver.Delete(f.ctx, volume))
	if exists(volume.Spec.Local.Path) {
		t.Error("the directory is still there")
	}
	if calls := f.nodes["other"].calls.Load(); calls > 0 {
		t.Errorf("the other node was called %d times", calls)
	}
}

// TestVolumesOfAMovedDiskAreEnded although the node that they name is there, and
// answers.
func TestVolumesOfAMovedDiskAreEnded(t *testing.T) {
	f := newFleet(t, "a", "b")
	volume := f.provision(on("a"))
	f.meet()
	base := f.nodes["a"].base
	must(t, f.nodes["a"].server.Close())
	f.serve("a", t.TempDir()) // the mount point, empty
	f.serve("c", base)
	// Only c says that it has the pool, once a was asked again.
	if shared := f.driver.SharedPools(f.ctx); len(shared) > 0 {
		t.Errorf("shared: %v", shared)
	}
	f.pass(6 * time.Minute)
	f.meet()
	if from, to, moved := f.driver.Moved(volume); !moved || from != "a" || to != "c" {
		t.Errorf("Moved = %s, %s, %t", from, to, moved)
	}
	must(t, f.driver.Delete(f.ctx, volume))
	if exists(filepath.Join(base, volume.Annotations["berth.storage/path"])) {
		t.Error("the directory is still there")
	}
}

// TestNothingHappensInPoolsThatCantBeToldApart until the copy has another id.
func TestNothingHappensInPoolsThatCantBeToldApart(t *testing.T) {
	f := newFleet(t, "a", "third")
	volume := f.provision(on("a"))
	f.copy()
	f.meet()
	shared := f.driver.SharedPools(f.ctx)
	if len(shared) != 1 || len(shared[0].Places) != 2 || shared[0].ID != volume.Annotations[hostpath.AnnPoolID] {
		t.Fatalf("SharedPools = %+v", shared)
	}
	words := []string{f.nodes["a"].base + " on node a", f.nodes["b"].base + " on node b", shared[0].ID}
	wantError(t, f.driver.Delete(f.ctx, volume), words...)
	_, err := f.driver.Expand(f.ctx, volume, 2<<30)
	wantError(t, err, words...)
	wantError(t, f.driver.Discard(f.ctx, f.driver.RecordOf(volume)), words...)
	unnamed := volume.DeepCopy()
	delete(unnamed.Annotations, hostpath.AnnPoolID)
	wantError(t, f.driver.Delete(f.ctx, unnamed), words...)
	for _, name := range []string{"a", "b"} {
		opts := on(name)
		opts.PVName, opts.PVC.UID = "pvc-new", "uid-new"
		f.wantReschedule(opts, words...)
		room, err := f.driver.Capacity(f.ctx, opts.StorageClass, name)
		if err != nil || room.Available != 0 {
			t.Errorf("room on %s: %+v, %v", name, room, err)
		}
	}
	for record, err := range f.driver.Volumes(f.ctx) {
		must(t, err)
		wantError(t, f.driver.Discard(f.ctx, record), words...)
		if got := f.driver.Identify(f.ctx, unnamed, record); got != nil {
			t.Errorf("a volume was given the id of two pools: %v", got)
		}
	}
	if _, _, moved := f.driver.Moved(volume); moved {
		t.Error("a pool in two places has moved")
	}
	third := on("third")
	third.PVName, third.PVC.UID = "pvc-third", "uid-third"
	f.provision(third) // is none of their business

	// As docs/operations.md says.
	must(t, f.nodes["b"].server.Close())
	text := filepath.Join(f.nodes["b"].base, ".berth", "pool.json")
	old, err := os.ReadFile(text)
	must(t, err)
	must(t, os.WriteFile(text, []byte(strings.Replace(string(old), shared[0].ID, "COPY-1", 1)), 0o600))
	f.serve("b", f.nodes["b"].base)
	f.pass(time.Minute)
	copied := filepath.Join(f.nodes["b"].base, volume.Annotations["berth.storage/path"])
	if room, err := f.driver.Capacity(f.ctx, third.StorageClass, "b"); err == nil && room.Available == 0 {
		f.driver.SharedPools(f.ctx) // asks again
	}
	must(t, f.driver.Delete(f.ctx, volume))
	if exists(volume.Spec.Local.Path) || !exists(copied) {
		t.Errorf("the volume is there: %t, its copy: %t", exists(volume.Spec.Local.Path), exists(copied))
	}
}

// TestACopyIsNotTakenForAMovedDisk when Berth has just started, and the node that
// the volume names can't say yet that it has the pool.
func TestACopyIsNotTakenForAMovedDisk(t *testing.T) {
	for name, silence := range map[string]func(f *fleet){
		"it has no agent at the moment": func(f *fleet) { f.nodes["a"].lost = fmt.Errorf("node a: %w", hostpath.ErrNoServer) },
		"its agent does not answer": func(f *fleet) {
			f.nodes["a"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("no answer")}
		},
		"its agent is of an older version": func(f *fleet) { f.nodes["a"].older = true },
		"such an agent is being replaced": func(f *fleet) {
			f.nodes["a"].older = true
			f.pass(11 * time.Minute)
			f.meet()
			f.nodes["a"].lost = fmt.Errorf("node a: %w", hostpath.ErrNoServer)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "a", "z")
			volume := f.provision(on("a"))
			f.copy()
			copied := filepath.Join(f.nodes["b"].base, volume.Annotations["berth.storage/path"])
			f.restart()
			silence(f)
			_ = f.driver.MeetNodes(f.ctx)
			if from, to, moved := f.driver.Moved(volume); moved {
				t.Errorf("Moved from %s to %s", from, to)
			}
			if err := f.driver.Delete(f.ctx, volume); err == nil {
				t.Error("Delete = nil")
			}
			if _, err := f.driver.Expand(f.ctx, volume, 2<<30); err == nil {
				t.Error("Expand = nil")
			}
			if !exists(volume.Spec.Local.Path) || !exists(copied) {
				t.Errorf("the volume is there: %t, its copy: %t", exists(volume.Spec.Local.Path), exists(copied))
			}
		})
	}
}

// TestAPoolIsRememberedWhileItsNodeCantBeAsked, unless there is no such Node.
func TestAPoolIsRememberedWhileItsNodeCantBeAsked(t *testing.T) {
	for name, end := range map[string]func(*fleet){
		"until it was silent for long": func(f *fleet) { f.pass(11 * time.Minute) },
		"until its Node is deleted":    func(f *fleet) { f.nodes["a"].Node = nil; f.pass(10 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "a", "z")
			volume := f.provision(on("a"))
			f.copy()
			f.meet()
			f.nodes["a"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
			f.pass(time.Minute)
			if len(f.driver.SharedPools(f.ctx)) != 1 {
				t.Error("what node a had is forgotten at once")
			}
			opts := on("b")
			opts.PVName, opts.PVC.UID = "pvc-2", "uid-2"
			f.wantReschedule(opts, "on node a")
			end(f)
			if shared := f.driver.SharedPools(f.ctx); len(shared) > 0 {
				t.Errorf("SharedPools = %v", shared)
			}
			f.provision(opts)
			_ = volume
		})
	}
}

// TestServersThatSayNothingOfPoolsServeAsBefore: those of an earlier version.
func TestServersThatSayNothingOfPoolsServeAsBefore(t *testing.T) {
	f := newFleet(t, "a")
	f.nodes["a"].older = true
	volume := f.provision(on("a"))
	if id, ok := volume.Annotations[hostpath.AnnPoolID]; ok {
		t.Errorf("the volume says %q", id)
	}
	f.meet()
	for record, err := range f.driver.Volumes(f.ctx) {
		must(t, err)
		if record.Pool != "" || f.driver.Identify(f.ctx, volume, record) != nil {
			t.Errorf("record %+v", record)
		}
	}
	if _, _, moved := f.driver.Moved(volume); moved {
		t.Error("it has moved")
	}
	_, err := f.driver.Expand(f.ctx, volume, 2<<30)
	must(t, err)
	must(t, f.driver.Delete(f.ctx, volume))
}

// TestVolumesWithoutAnIDGetThatOfTheirPool, by name and path.
func TestVolumesWithoutAnIDGetThatOfTheirPool(t *testing.T) {
	identify := func(f *fleet, volume *corev1.PersistentVolume) (got map[string]string) {
		for record, err := range f.driver.Volumes(f.ctx) {
			must(f.t, err)
			if more := f.driver.Identify(f.ctx, volume, record); more != nil {
				got = more
			}
		}
		return got
	}
	unnamed := func(f *fleet) (*corev1.PersistentVolume, string) {
		volume := f.provision(on("a"))
		id := volume.Annotations[hostpath.AnnPoolID]
		delete(volume.Annotations, hostpath.AnnPoolID)
		return volume, id
	}
	t.Run("on its node", func(t *testing.T) {
		f := newFleet(t, "a")
		volume, id := unnamed(f)
		if got := identify(f, volume); got[hostpath.AnnPoolID] != id {
			t.Errorf("Identify = %v, want %s", got, id)
		}
	})
	t.Run("on its node under another name", func(t *testing.T) {
		f := newFleet(t, "a")
		volume, id := unnamed(f)
		f.rename("a", "b")
		if got := identify(f, volume); got[hostpath.AnnPoolID] != id {
			t.Errorf("Identify = %v, want %s", got, id)
		}
	})
	t.Run("not while its node may have it", func(t *testing.T) {
		f := newFleet(t, "a")
		volume, _ := unnamed(f)
		f.copy()
		f.nodes["a"].lost = fmt.Errorf("node a: %w", hostpath.ErrNoServer)
		if got := identify(f, volume); got != nil {
			t.Errorf("Identify = %v", got)
		}
	})
	t.Run("not at another path", func(t *testing.T) {
		f := newFleet(t, "a")
		volume, _ := unnamed(f)
		volume.Spec.Local.Path += "x"
		if got := identify(f, volume); got != nil {
			t.Errorf("Identify = %v", got)
		}
	})
}

// TestASingleNodeKeepsItsVolumesUnderAnotherName, also those that don't say which
// pool they lie in.
func TestASingleNodeKeepsItsVolumesUnderAnotherName(t *testing.T) {
	for _, named := range []bool{true, false} {
		t.Run(fmt.Sprintf("named=%t", named), func(t *testing.T) {
			b := newBench(t)
			volume := b.provision(askFor())
			volume.Annotations[hostpath.AnnNode] = "node-of-before"
			if !named {
				delete(volume.Annotations, hostpath.AnnPoolID)
			}
			b.restart()
			if !b.driver.ShouldDelete(b.ctx, volume) {
				t.Error("ShouldDelete = false")
			}
			if _, err := b.driver.Expand(b.ctx, volume, 2<<30); err != nil {
				t.Errorf("Expand = %v", err)
			}
			must(t, b.driver.Delete(b.ctx, volume))
			b.wantNothingMade()
		})
	}
}

// TestADirectoryThatHoldsAnotherPoolIsNotTouched, whatever its markers say.
func TestADirectoryThatHoldsAnotherPoolIsNotTouched(t *testing.T) {
	b := newBench(t)
	volume := b.provision(askFor())
	volume.Annotations[hostpath.AnnPoolID] = "ANOTHER"
	record := b.driver.RecordOf(volume)
	wantError(t, b.driver.Delete(b.ctx, volume), "ANOTHER", "not touching anything")
	wantError(t, b.driver.Discard(b.ctx, record), "ANOTHER")
	_, err := b.driver.Expand(b.ctx, volume, 2<<30)
	wantError(t, err, "ANOTHER")
	if !exists(volume.Spec.Local.Path) {
		t.Error("the directory is gone")
	}
}

// TestADirectoryThatCantBeReadHidesNoOther: what is missing there is told by place.
func TestADirectoryThatCantBeReadHidesNoOther(t *testing.T) {
	bases := []string{t.TempDir(), t.TempDir()}
	server, err := hostpath.NewLocal(node.Options{NodeName: "a", Pools: map[string][]string{"one": {bases[0]}, "two": {bases[1]}}})
	must(t, err)
	f := newFleet(t, "a")
	f.nodes["a"].server = server
	t.Cleanup(func() { server.Close() })
	for i, pool := range []string{"one", "two"} {
		opts := on("a", "pool", pool)
		opts.PVName = fmt.Sprintf("pvc-%d", i)
		f.provision(opts)
	}
	must(t, os.WriteFile(filepath.Join(bases[0], ".berth", "volumes", "pvc-0.json"), []byte("{"), 0o600))
	var places []string
	records := 0
	for _, err := range f.driver.Volumes(f.ctx) {
		var unread *provisioner.UnreadError
		switch {
		case errors.As(err, &unread):
			places = append(places, unread.Place)
		case err == nil:
			records++
		}
	}
	if records != 1 || len(places) != 1 || places[0] != "a"+bases[0]+"/" {
		t.Errorf("%d records, unread %v, want that of %s", records, places, bases[0])
	}
	if err := f.driver.MeetNodes(context.Background()); err != nil {
		t.Error(err)
	}
}
