package directory_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
)

// BenchmarkCreateDelete measures volumes made, and deleted, per second by 32
// callers at once; run it with TMPDIR on the disk of interest.
func BenchmarkCreateDelete(b *testing.B) {
	for _, prefix := range []string{"", "tenant/team/"} {
		b.Run(fmt.Sprintf("prefix=%q", prefix), func(b *testing.B) {
			pool := newPool(b, b.TempDir())
			paths := make([]directory.Spec, b.N)
			for i := range paths {
				paths[i] = specFor(fmt.Sprintf("%spvc-%d", prefix, i))
				paths[i].Volume = fmt.Sprintf("pvc-%d", i)
				paths[i].ClaimUID = types.UID(paths[i].Volume)
			}
			var next atomic.Int64
			b.SetParallelism(16) // 32 callers on two processors
			run := func(f func(directory.Spec) error) {
				next.Store(0)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := f(paths[next.Add(1)-1]); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ResetTimer()
			run(func(s directory.Spec) error { _, err := pool.Create(context.Background(), s); return err })
			created := b.Elapsed()
			run(func(s directory.Spec) error {
				return pool.Delete(context.Background(), s.Volume, directory.Expectation{ClaimUID: s.ClaimUID, Path: s.Path, OnDelete: s.OnDelete})
			})
			b.ReportMetric(float64(b.N)/created.Seconds(), "creates/s")
			b.ReportMetric(float64(b.N)/(b.Elapsed()-created).Seconds(), "deletes/s")
		})
	}
}

func newPool(tb testing.TB, base string) *directory.Pool {
	tb.Helper()
	local, err := directory.NewLocal(base, directory.LocalOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	pool := directory.NewPool(local, directory.Options{Name: "default", Driver: "test", Log: logr.Discard()})
	tb.Cleanup(func() { pool.Close() })
	return pool
}

// specFor is a volume at path that differs from others by path alone.
func specFor(path string) directory.Spec {
	return directory.Spec{
		Volume:   "pvc-1",
		Claim:    types.NamespacedName{Namespace: "ns", Name: "claim"},
		ClaimUID: "uid-1",
		Class:    "class",
		Path:     path,
		OnDelete: directory.OnDeleteDelete,
		Mode:     0o770,
	}
}
