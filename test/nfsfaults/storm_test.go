package nfsfaults_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
)

const (
	// workers is how many volumes are worked on at a time. Each worker has a
	// path of its own, where one volume comes after the other.
	workers = 48
	// parents is how many directories these paths lie in.
	parents = 5
	// patience is how long one volume may take before it is stuck.
	patience = 3 * time.Minute
	mode     = 0o770
)

// tally counts what came of it.
type tally struct {
	Created, Abandoned, Deleted, Swept int
	// Errors counts attempts that failed, Unknown those of them that left open
	// what they did.
	Errors, Unknown int
	// What must not be.
	Twice, NotDone, Stuck, MarkersAlone, DirectoriesAlone int
}

func (t tally) bad() int {
	return t.Twice + t.NotDone + t.Stuck + t.MarkersAlone + t.DirectoriesAlone
}

// storm creates and deletes volumes through a pool, and looks at base, where the
// server keeps them, whether what was said to be done is done.
type storm struct {
	t    *testing.T
	pool *directory.Pool
	base string
	seed uint64

	mu sync.Mutex
	tally
}

// run creates n volumes, and deletes as many. Beyond these, some are given up
// before they are made.
func (s *storm) run(n int) {
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(s.seed, uint64(w)))
			for i := w; i < n; i += workers {
				abandoned := ""
				if random.IntN(8) == 0 {
					abandoned = s.abandon(random, s.spec(w, i, "b"))
				}
				spec := s.spec(w, i, "a")
				if s.create(random, spec, abandoned) {
					s.delete(random, spec)
				}
			}
		})
	}
	all.Wait()
}

func (s *storm) spec(worker, i int, kind string) directory.Spec {
	uid := fmt.Sprintf("%08d-%s", i, kind)
	return directory.Spec{
		Volume: "pvc-" + uid, Claim: types.NamespacedName{Namespace: "ns", Name: fmt.Sprint("claim-", worker)}, ClaimUID: types.UID(uid),
		Class: "nfs", SizeBytes: 1 << 30, Path: fmt.Sprintf("ns%d/claim-%d", worker%parents, worker), OnDelete: directory.OnDeleteDelete, Mode: mode,
	}
}

func (s *storm) count(f func(t *tally)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.tally)
}

// done counts the creations and deletions that are through.
func (s *storm) done() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Created + s.Deleted
}

// until makes attempts, as the controller does, and reports whether one has
// succeeded.
func (s *storm) until(random *rand.Rand, what string, attempt func(ctx context.Context) error) bool {
	var history []string
	for begun := time.Now(); ; {
		attempted := time.Since(begun)
		err := attempt(s.t.Context())
		if err == nil {
			return true
		}
		history = append(history, fmt.Sprintf("after %.1fs, for %.1fs: %v", attempted.Seconds(), (time.Since(begun)-attempted).Seconds(), err))
		s.count(func(t *tally) {
			t.Errors++
			if errors.Is(err, directory.ErrOutcomeUnknown) {
				t.Unknown++
			}
		})
		// These nobody would try again soon.
		lasting := errors.Is(err, directory.ErrExists) || errors.Is(err, directory.ErrNotOwned) || errors.Is(err, directory.ErrDamagedMarker)
		if lasting || time.Since(begun) > patience {
			s.count(func(t *tally) { t.Stuck++ })
			s.t.Errorf("%s is stuck after %s:\n%s", what, time.Since(begun).Round(time.Second), strings.Join(history, "\n"))
			return false
		}
		time.Sleep(time.Duration(200+random.IntN(800)) * time.Millisecond) // the controller's back-off, not a wait for anything
	}
}

// create makes a volume where another one may have been given up. That it has a
// marker after all the controller finds out in time.
func (s *storm) create(random *rand.Rand, spec directory.Spec, abandoned string) bool {
	made := s.until(random, "the creation of "+spec.Volume, func(ctx context.Context) error {
		_, err := s.pool.Create(ctx, spec)
		if errors.Is(err, directory.ErrConflict) && abandoned != "" {
			err = errors.Join(err, s.pool.Discard(ctx, abandoned))
		}
		return err
	})
	if !made {
		return false
	}
	info, dir := os.Lstat(s.directory(spec))
	_, marker := os.Lstat(s.marker(spec))
	s.count(func(t *tally) {
		t.Created++
		if dir != nil || marker != nil || info.Mode().Perm() != mode {
			t.NotDone++
			s.t.Errorf("%s was said to be made: directory %v, marker %v", spec.Volume, dir, marker)
		}
	})
	if err := os.WriteFile(s.data(spec), []byte(spec.Volume), 0o600); err != nil {
		s.t.Errorf("%s was said to be made: %v", spec.Volume, err)
		return false
	}
	return true
}

func (s *storm) delete(random *rand.Rand, spec directory.Spec) {
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path, OnDelete: spec.OnDelete}
	deleted := s.until(random, "the deletion of "+spec.Volume, func(ctx context.Context) error {
		if content, err := os.ReadFile(s.data(spec)); err == nil && string(content) != spec.Volume {
			s.t.Errorf("%s holds the data of %s", spec.Volume, content)
		}
		return s.pool.Delete(ctx, spec.Volume, expect)
	})
	if deleted {
		s.count(func(t *tally) { t.Deleted++ })
		s.wantGone(spec)
	}
}

// abandon is a claim that is deleted before its volume is made. It returns the
// volume's name.
func (s *storm) abandon(random *rand.Rand, spec directory.Spec) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Duration(random.IntN(500))*time.Millisecond)
	_, _ = s.pool.Create(ctx, spec)
	cancel()
	if s.discard(random, spec.Volume) {
		s.count(func(t *tally) { t.Abandoned++ })
	}
	return spec.Volume
}

func (s *storm) discard(random *rand.Rand, volume string) bool {
	return s.until(random, "the discarding of "+volume, func(ctx context.Context) error { return s.pool.Discard(ctx, volume) })
}

// sweep is the controller's look for volumes that nobody has: a marker may have
// been written after it was found missing.
func (s *storm) sweep() {
	random := rand.New(rand.NewPCG(s.seed, workers+1))
	var left []string
	s.until(random, "the list of volumes", func(ctx context.Context) error {
		left = nil
		for record, err := range s.pool.Volumes(ctx) {
			if err != nil {
				return err
			}
			left = append(left, record.Volume)
		}
		return nil
	})
	for _, volume := range left {
		if s.discard(random, volume) {
			s.Swept++
		}
	}
}

func (s *storm) wantGone(spec directory.Spec) {
	_, dir := os.Lstat(s.directory(spec))
	_, marker := os.Lstat(s.marker(spec))
	if errors.Is(dir, fs.ErrNotExist) && errors.Is(marker, fs.ErrNotExist) {
		return
	}
	s.count(func(t *tally) { t.NotDone++ })
	s.t.Errorf("%s was said to be gone: directory %v, marker %v", spec.Volume, dir, marker)
}

// converged looks at what is left in the end, when there should be nothing.
func (s *storm) converged() {
	for _, e := range s.entries(".berth/volumes") {
		if !strings.HasPrefix(e.Name(), directory.TempPrefix) {
			s.MarkersAlone++
			s.t.Errorf("marker %s is left", e.Name())
		}
	}
	for _, parent := range s.entries(".") {
		if parent.Name() == ".berth" {
			continue
		}
		for _, e := range s.entries(parent.Name()) {
			s.DirectoriesAlone++
			s.t.Errorf("directory %s/%s is left", parent.Name(), e.Name())
		}
	}
	// Nobody empties the trash: each volume has been moved there once, with
	// its data.
	times := map[string]int{}
	for _, e := range s.entries(".berth/trash") {
		_, volume, _ := strings.Cut(e.Name(), "-")
		times[volume]++
		content, err := os.ReadFile(filepath.Join(s.base, ".berth/trash", e.Name(), "data"))
		if err != nil || string(content) != volume {
			s.Twice++
			s.t.Errorf("in the trash %s holds %q: %v", e.Name(), content, err)
		}
	}
	if len(times) != s.Deleted {
		s.NotDone++
		s.t.Errorf("%d volumes were said to be deleted, %d are in the trash", s.Deleted, len(times))
	}
	for volume, n := range times {
		if n > 1 {
			s.Twice++
			s.t.Errorf("%s is in the trash %d times", volume, n)
		}
	}
}

func (s *storm) entries(path string) []os.DirEntry {
	entries, err := os.ReadDir(filepath.Join(s.base, path))
	if err != nil {
		s.t.Error(err)
	}
	return entries
}

func (s *storm) directory(spec directory.Spec) string { return filepath.Join(s.base, spec.Path) }
func (s *storm) data(spec directory.Spec) string      { return filepath.Join(s.base, spec.Path, "data") }
func (s *storm) marker(spec directory.Spec) string {
	return filepath.Join(s.base, ".berth/volumes", spec.Volume+".json")
}
