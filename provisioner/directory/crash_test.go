package directory_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
)

var errPower = fmt.Errorf("the test pulled the plug: %w", syscall.EIO)

// faultKinds are the ways in which the nth call of an operation goes wrong.
// Each reports by hit whether there was an nth call.
var faultKinds = map[string]func(nth int, hit *bool) *faultFS{
	"one call fails": func(nth int, hit *bool) *faultFS {
		n := 0
		return &faultFS{before: func(string, string) error {
			if n++; n != nth {
				return nil
			}
			*hit = true
			return errPower
		}}
	},
	"the process dies before a call": func(nth int, hit *bool) *faultFS {
		n := 0
		return &faultFS{before: func(string, string) error {
			if n++; n < nth {
				return nil
			}
			*hit = true
			return errPower
		}}
	},
	"the process dies after a call": func(nth int, hit *bool) *faultFS {
		n := 0
		dead := func() error {
			if !*hit {
				return nil
			}
			return errPower
		}
		return &faultFS{
			before: func(string, string) error { n++; return dead() },
			after:  func(string, string) error { *hit = *hit || n >= nth; return dead() },
		}
	},
	"an answer is lost": func(nth int, hit *bool) *faultFS {
		n := 0
		return &faultFS{after: func(string, string) error {
			if n++; n != nth {
				return nil
			}
			*hit = true
			return directory.ErrOutcomeUnknown
		}}
	},
}

// enoughCalls is more than any operation here makes.
const enoughCalls = 400

// TestOperationsConvergeAfterAFault runs each operation with a fault at its
// nth call, for every n, then again without, and looks at what is left.
func TestOperationsConvergeAfterAFault(t *testing.T) {
	archived := specFor("team/app/vol")
	archived.OnDelete = directory.OnDeleteArchive
	plain := specFor("team/app/vol")

	for name, op := range map[string]struct {
		prepare func(b *bench)
		run     func(b *bench, pool *directory.Pool) error
		check   func(b *bench)
	}{
		"first create": {
			run: func(b *bench, pool *directory.Pool) error { _, err := pool.Create(b.ctx, plain); return err },
			check: func(b *bench) {
				b.wantTree("team", "team/app", "team/app/vol")
				b.wantAdmin("volumes", "pvc-1.json")
				wantAttr(b.t, b.path("team/app/vol"), plain.Mode, *plain.UID, *plain.GID)
			},
		},
		"create beside another": {
			prepare: func(b *bench) { b.create(volumeAt("pvc-0", "team/other")) },
			run:     func(b *bench, pool *directory.Pool) error { _, err := pool.Create(b.ctx, plain); return err },
			check: func(b *bench) {
				b.wantTree("team", "team/app", "team/app/vol", "team/other")
				b.wantAdmin("volumes", "pvc-0.json", "pvc-1.json")
			},
		},
		"delete": {
			prepare: func(b *bench) { b.create(plain); b.data("team/app/vol") },
			run: func(b *bench, pool *directory.Pool) error {
				return pool.Delete(b.ctx, "pvc-1", directory.Expectation{ClaimUID: plain.ClaimUID, Path: plain.Path, OnDelete: plain.OnDelete})
			},
			check: func(b *bench) {
				b.wantTree()
				b.wantAdmin("volumes")
				if n := b.trashCount(); n != 1 {
					b.t.Errorf("%d entries in the trash", n)
				}
			},
		},
		"archive": {
			prepare: func(b *bench) { b.create(archived); b.data("team/app/vol") },
			run: func(b *bench, pool *directory.Pool) error {
				return pool.Delete(b.ctx, "pvc-1", directory.Expectation{ClaimUID: plain.ClaimUID, Path: plain.Path, OnDelete: archived.OnDelete})
			},
			check: func(b *bench) {
				b.wantTree()
				b.wantAdmin("volumes")
				b.wantAdmin("archive", "team_app_vol-pvc-1", "team_app_vol-pvc-1.json")
				b.wantData(".berth/archive/team_app_vol-pvc-1")
			},
		},
		"discard": {
			prepare: func(b *bench) { b.create(plain) },
			run:     func(b *bench, pool *directory.Pool) error { return pool.Discard(b.ctx, "pvc-1") },
			check:   func(b *bench) { b.wantTree(); b.wantAdmin("volumes") },
		},
		"purge": {
			prepare: func(b *bench) {
				b.create(plain)
				must(b.t, os.MkdirAll(b.path("team/app/vol/a/b/c"), 0o755))
				must(b.t, os.WriteFile(b.path("team/app/vol/a/b/c/file"), nil, 0o644))
				must(b.t, os.Symlink("/", b.path("team/app/vol/a/root")))
				must(b.t, b.delete(plain))
			},
			run:   func(b *bench, pool *directory.Pool) error { return pool.PurgeTrash(b.ctx) },
			check: func(b *bench) { b.wantAdmin("trash") },
		},
	} {
		for kind, fault := range faultKinds {
			t.Run(name+", "+kind, func(t *testing.T) {
				for nth := 1; ; nth++ {
					if nth > enoughCalls {
						t.Fatal("the operation never gets through")
					}
					b := newFastBench(t)
					if op.prepare != nil {
						op.prepare(b)
					}
					must(t, b.pool.Close())

					hit := false
					faults := fault(nth, &hit)
					faults.serialise()
					faults.Filesystem = local(t, b.base)
					faulty := poolOn(t, faults, func(*directory.Options) {})
					err := op.run(b, faulty)
					if kind == "one call fails" && err != nil && !errors.Is(err, directory.ErrOutcomeUnknown) {
						wantNothingHalfMade(t, b, name, nth)
					}
					if err != nil && (kind == "one call fails" || kind == "an answer is lost") {
						if err := op.run(b, faulty); err != nil {
							t.Errorf("call %d: the same process tried again: %v", nth, err)
						}
					}
					must(t, faulty.Close())
					if faults.open != 0 {
						t.Errorf("call %d: %d directories were left open", nth, faults.open)
					}

					b.pool = newPool(t, b.base)
					if err := op.run(b, b.pool); err != nil && !errors.Is(err, directory.ErrNotInitialised) {
						t.Fatalf("call %d: tried again: %v", nth, err)
					}
					op.check(b)
					must(t, b.pool.Close())
					if t.Failed() {
						t.Fatalf("call %d, which failed with: %v", nth, err)
					}
					if !hit {
						return // nth is beyond the operation's last call
					}
				}
			})
		}
	}
}

// wantNothingHalfMade checks that a create that failed for good has taken back
// what it made. One call has failed, so the taking back did not.
func wantNothingHalfMade(t *testing.T, b *bench, op string, nth int) {
	t.Helper()
	if !strings.Contains(op, "create") {
		return
	}
	if _, err := os.Lstat(b.path(".berth/volumes")); err != nil {
		return
	}
	for _, marker := range names(t, b.path(".berth/volumes")) {
		if marker == "pvc-1.json" {
			t.Errorf("call %d failed, and the marker stayed", nth)
		}
	}
	var left []string
	for _, p := range tree(t, b.base) {
		if strings.HasPrefix(p, "team/app") {
			left = append(left, p)
		}
	}
	if diff := cmp.Diff([]string(nil), left); diff != "" {
		t.Errorf("call %d failed, and this stayed: %s", nth, diff)
	}
}
