package directory_test

import (
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

// TestLimitsConvergeAfterAFault is TestOperationsConvergeAfterAFault for volumes
// with a quota, whose calls fail too.
func TestLimitsConvergeAfterAFault(t *testing.T) {
	spec := limited("pvc-1", "vol", directory.QuotaRequired)
	archived := spec
	archived.OnDelete = directory.OnDeleteArchive
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path, OnDelete: spec.OnDelete}

	for name, op := range map[string]struct {
		prepare func(b *quotaBench)
		run     func(b *quotaBench, pool *directory.Pool) error
		limits  map[string]int64
	}{
		"create": {
			run:    func(b *quotaBench, pool *directory.Pool) error { _, err := pool.Create(b.ctx, spec); return err },
			limits: map[string]int64{"vol": 1 << 30},
		},
		"resize": {
			prepare: func(b *quotaBench) { b.create(spec) },
			run: func(b *quotaBench, pool *directory.Pool) error {
				return pool.Resize(b.ctx, spec.Volume, expect, 2<<30)
			},
			limits: map[string]int64{"vol": 2 << 30},
		},
		"delete": {
			prepare: func(b *quotaBench) { b.create(spec); b.data("vol") },
			run:     func(b *quotaBench, pool *directory.Pool) error { return pool.Delete(b.ctx, spec.Volume, expect) },
		},
		"archive": {
			prepare: func(b *quotaBench) { b.create(archived); b.data("vol") },
			run:     func(b *quotaBench, pool *directory.Pool) error { return pool.Delete(b.ctx, spec.Volume, expect) },
		},
		"discard": {
			prepare: func(b *quotaBench) { b.create(spec) },
			run:     func(b *quotaBench, pool *directory.Pool) error { return pool.Discard(b.ctx, spec.Volume) },
		},
	} {
		for kind, fault := range faultKinds {
			t.Run(name+", "+kind, func(t *testing.T) {
				for nth := 1; ; nth++ {
					if nth > enoughCalls {
						t.Fatal("the operation never gets through")
					}
					b := newQuotaBench(t)
					if op.prepare != nil {
						op.prepare(b)
					}
					must(t, b.pool.Close())
					b.quota.restart()

					hit := false
					faults := fault(nth, &hit)
					faults.serialise()
					faults.Filesystem = local(t, b.base)
					faulty := poolOn(t, faults, func(o *directory.Options) { o.Quota = &faultQuota{Quota: b.quota, fs: faults} })
					first := op.run(b, faulty)
					if first != nil && kind == "one call fails" && name == "create" {
						b.wantLimits(map[string]int64{}) // it was taken back
					}
					must(t, faulty.Close())
					if faults.open != 0 {
						t.Errorf("call %d: %d directories were left open", nth, faults.open)
					}
					b.pool = b.open(local(t, b.base))
					b.restart()
					if name == "resize" {
						b.wantCounted(spec)
					}
					must(t, op.run(b, b.pool))
					want := op.limits
					if want == nil {
						want = map[string]int64{}
					}
					b.wantLimits(want)
					must(t, b.pool.Close())
					if t.Failed() {
						t.Fatalf("call %d, which failed with: %v", nth, first)
					}
					if !hit {
						return // nth is beyond the operation's last call
					}
				}
			})
		}
	}
}
