package directory_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

// BenchmarkCreateDelete measures volumes made, and deleted, per second by 32
// callers at once; run it with TMPDIR on the disk of interest.
func BenchmarkCreateDelete(b *testing.B) {
	for _, prefix := range []string{"", "tenant/team/"} {
		b.Run(fmt.Sprintf("prefix=%q", prefix), func(b *testing.B) {
			pool := newPool(b, b.TempDir())
			specs := make([]directory.Spec, b.N)
			for i := range specs {
				volume := fmt.Sprintf("pvc-%d", i)
				specs[i] = volumeAt(volume, prefix+volume)
			}
			var next atomic.Int64
			b.SetParallelism(16) // 32 callers on two processors
			run := func(f func(directory.Spec) error) {
				next.Store(0)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := f(specs[next.Add(1)-1]); err != nil {
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
