package quota_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/quota"
)

// acts are the life of volume a. Each begins where the one before ends.
var acts = []struct {
	name string
	do   func(ctx context.Context, pool *directory.Pool) error
	// points are where it is killed.
	points []crashpoint.Point
	// limit is that of the volume afterwards, in MiB; 0 is none.
	limit int64
}{
	{
		name: "create",
		do: func(ctx context.Context, pool *directory.Pool) error {
			_, err := pool.Create(ctx, volume("a", 4))
			return err
		},
		points: []crashpoint.Point{crashpoint.MarkerWritten, crashpoint.DirectoryCreated, crashpoint.ProjectSet, crashpoint.LimitRaised},
		limit:  4,
	},
	{
		name: "grow",
		do: func(ctx context.Context, pool *directory.Pool) error {
			return pool.Resize(ctx, "a", expect(volume("a", 4)), 8*mib)
		},
		points: []crashpoint.Point{crashpoint.LimitRaised},
		limit:  8,
	},
	{
		name: "delete",
		do: func(ctx context.Context, pool *directory.Pool) error {
			return pool.Delete(ctx, "a", expect(volume("a", 4)))
		},
		points: []crashpoint.Point{crashpoint.LimitLifted, crashpoint.MovedToTrash, crashpoint.MarkerRemoved},
	},
	{
		name:   "purge",
		do:     func(ctx context.Context, pool *directory.Pool) error { return pool.PurgeTrash(ctx) },
		points: []crashpoint.Point{crashpoint.TrashPartlyPurged},
	},
}

// live does one act, in a process of its own.
func live(base, name string) error {
	pool, err := openPool(base, quota.New(quota.DefaultRange))
	if err != nil {
		return err
	}
	for _, act := range acts {
		if act.name == name {
			err = act.do(context.Background(), pool)
		}
	}
	return errors.Join(err, pool.Close())
}

// kill has another process do an act until it is killed at point.
func kill(t *testing.T, base, act string, point crashpoint.Point) {
	t.Helper()
	cmd := helper(t, crasher, 0, base, act)
	cmd.Env = append(cmd.Env, "BERTH_CRASHPOINT="+string(point))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s was not killed at %s: %v, %s", act, point, err, out)
	}
}

// crashing kills every act at every point and has a restarted pool finish it,
// after another pool of the same disk has made a volume.
func crashing(t *testing.T, b *bench) {
	must(t, b.pool.Close())
	base, err := os.MkdirTemp(filepath.Dir(b.base), "other-")
	must(t, err)
	other := newBench(t, base, b.disk)
	known := map[uint32]bool{} // of other tests, on the same disk
	for id := range quota.InUse(t, b.root()) {
		known[id] = true
	}
	neighbours := 0
	for i, act := range acts {
		for _, point := range act.points {
			t.Run(act.name+" at "+string(point), func(t *testing.T) {
				b := *b
				b.t, b.ctx = t, t.Context()
				for _, before := range acts[:i] {
					must(t, live(b.base, before.name))
				}
				if act.name == "delete" {
					must(t, os.WriteFile(b.path("a/data"), make([]byte, mib), 0o600))
				}
				kill(t, b.base, act.name, point)

				neighbours++
				other.restart()
				neighbour := other.create(volume(string(rune('a'+neighbours)), 4))
				known[neighbour.Project] = true

				must(t, live(b.base, act.name))
				b.pool = poolAt(t, b.base, quota.New(quota.DefaultRange))
				m, err := b.pool.Lookup(t.Context(), "a")
				if err == nil {
					if m.Project == neighbour.Project {
						t.Errorf("two volumes have project id %d", m.Project)
					}
					if u := b.usage("a"); !u.Enforced || u.LimitBytes != act.limit*mib {
						t.Errorf("usage = %+v, want a limit of %d MiB", u, act.limit)
					}
					b.wantSize(b.path("a"), act.limit)
					must(t, b.pool.Delete(t.Context(), "a", expect(volume("a", 4))))
				} else if act.limit != 0 {
					t.Error(err)
				}
				if got := other.limitOf(neighbour.Project).LimitBytes; got != 4*mib {
					t.Errorf("the neighbour's limit is %d", got)
				}
				must(t, b.pool.PurgeTrash(b.ctx))
				b.wantInUse(known)
				must(t, b.pool.Close())
			})
		}
	}
}

// wantInUse checks that no id is in use any more but those known, soon.
func (b *bench) wantInUse(known map[uint32]bool) {
	b.t.Helper()
	root := b.root()
	gomega.NewWithT(b.t).Eventually(func() (stray []uint32) {
		for id := range quota.InUse(b.t, root) {
			if !known[id] {
				stray = append(stray, id)
			}
		}
		return stray
	}, 10*time.Second).Should(gomega.BeEmpty())
}
