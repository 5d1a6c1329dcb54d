package directory_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// quotaBench is a bench whose pool has quotas.
type quotaBench struct {
	*bench
	quota *fakeQuota
}

func newQuotaBench(t *testing.T) *quotaBench {
	t.Helper()
	b := newFastBench(t)
	must(t, b.pool.Close())
	qb := &quotaBench{bench: b, quota: newFakeQuota(t)}
	qb.pool = qb.open(local(t, b.base))
	return qb
}

func (b *quotaBench) open(filesystem directory.Filesystem) *directory.Pool {
	return poolOn(b.t, filesystem, func(o *directory.Options) { o.Quota = b.quota })
}

func (b *quotaBench) restart() {
	b.t.Helper()
	must(b.t, b.pool.Close())
	b.quota.restart()
	b.pool = b.open(local(b.t, b.base))
}

// wantLimits checks all limits there are, by the directory they are for.
func (b *quotaBench) wantLimits(want map[string]int64) {
	b.t.Helper()
	b.quota.tidy()
	got := map[string]int64{}
	for id, limit := range b.quota.limits {
		where := fmt.Sprintf("nothing (id %d)", id)
		for path := range want {
			root, err := local(b.t, b.base).Root(b.ctx)
			must(b.t, err)
			if dir, err := root.Open(b.ctx, path); err == nil {
				ino, file, err := inodeOf(dir)
				must(b.t, errors.Join(err, file.Close(), dir.Close()))
				if b.quota.ids[ino] == id {
					where = path
				}
			}
			_ = root.Close()
		}
		got[where] = limit
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("limits (-want +got):\n%s", diff)
	}
}

func limited(volume, path string, mode directory.QuotaMode) directory.Spec {
	spec := volumeAt(volume, path)
	spec.Quota = mode
	return spec
}

func TestQuotaFollowsTheVolume(t *testing.T) {
	b := newQuotaBench(t)
	spec := limited("pvc-1", "vol", directory.QuotaAuto)
	m := b.create(spec)
	if m.Project == 0 || m.QuotaState() != "enforced" {
		t.Errorf("project %d, %s", m.Project, m.QuotaState())
	}
	b.wantLimits(map[string]int64{"vol": 1 << 30})

	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
	for _, size := range []int64{3 << 30, 2 << 30} {
		must(t, b.pool.Resize(b.ctx, spec.Volume, expect, size))
		b.wantLimits(map[string]int64{"vol": 3 << 30})
		b.restart()
	}
	must(t, b.delete(spec))
	b.wantLimits(map[string]int64{})
	if n := b.quota.carriers(m.Project); n != 1 {
		t.Errorf("%d directories carry the id while the trash is full", n)
	}
	if m := b.create(limited("pvc-2", "vol", directory.QuotaAuto)); m.Project == 1 {
		t.Error("an id that the trash carries was given away")
	}
}

func TestAnArchiveIsNotLimited(t *testing.T) {
	for _, onDelete := range []directory.OnDelete{directory.OnDeleteArchive, directory.OnDeleteRetain} {
		b := newQuotaBench(t)
		spec := limited("pvc-1", "vol", directory.QuotaRequired)
		spec.OnDelete = onDelete
		m := b.create(spec)
		must(t, b.delete(spec))
		b.wantLimits(map[string]int64{})
		if n := b.quota.carriers(m.Project); n != 1 {
			t.Errorf("%s: %d directories carry the id", onDelete, n)
		}
	}
}

func TestDiscardKeepsTheLimitOfAVolumeWithData(t *testing.T) {
	b := newQuotaBench(t)
	b.create(limited("pvc-1", "vol", directory.QuotaAuto))
	b.data("vol")
	wantError(t, "Discard", b.pool.Discard(b.ctx, "pvc-1"), provisioner.ErrNotEmpty)
	b.wantLimits(map[string]int64{"vol": 1 << 30})
	must(t, os.Remove(b.path("vol/data")))
	must(t, b.pool.Discard(b.ctx, "pvc-1"))
	b.wantLimits(map[string]int64{})
}

func TestWithoutQuotaTheMarkerSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		mode    directory.QuotaMode
		adopt   bool
		prepare func(b *quotaBench)
		want    string
	}{
		"the filesystem can't": {mode: directory.QuotaAuto, prepare: func(b *quotaBench) { b.quota.unsupported = "no such luck" }, want: "none: no such luck"},
		"the class says none":  {mode: directory.QuotaNone, want: "none: its class says so"},
		"the class is silent":  {mode: "", want: "none: the volume was made without a quota"},
		"adopted": {
			mode: directory.QuotaAuto, adopt: true,
			prepare: func(b *quotaBench) {
				must(b.t, os.MkdirAll(b.path(".berth"), 0o700))
				must(b.t, os.Mkdir(b.path("vol"), 0o700))
			},
			want: "none: the directory was there before the volume, and a limit counts only what is made after it was set",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newQuotaBench(t)
			if c.prepare != nil {
				c.prepare(b)
			}
			spec := limited("pvc-1", "vol", c.mode)
			spec.Adopt = c.adopt
			if m := b.create(spec); m.QuotaState() != c.want || m.Project != 0 {
				t.Errorf("%q, project %d, want %q", m.QuotaState(), m.Project, c.want)
			}
			b.restart()
			m, err := b.pool.Lookup(b.ctx, "pvc-1")
			must(t, err)
			if m.QuotaState() != c.want {
				t.Errorf("after a restart: %q", m.QuotaState())
			}
			b.wantLimits(map[string]int64{})
			must(t, b.pool.Resize(b.ctx, "pvc-1", directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}, 2<<30))
			if c.mode != directory.QuotaAuto {
				return
			}
			spec.Volume, spec.ClaimUID, spec.Quota = "pvc-2", "uid-2", directory.QuotaRequired
			must(t, b.delete(limited("pvc-1", "vol", c.mode)))
			if c.adopt {
				must(t, os.Mkdir(b.path("vol"), 0o700))
			}
			if _, err := b.pool.Create(b.ctx, spec); !provisioner.IsInfeasible(err) {
				t.Errorf("with quota required: %v", err)
			}
			if _, err := os.Lstat(b.path(".berth/volumes/pvc-2.json")); err == nil {
				t.Error("a marker was written")
			}
		})
	}
}

func TestALimitComesBackWithTheFilesystems(t *testing.T) {
	b := newQuotaBench(t)
	spec := limited("pvc-1", "vol", directory.QuotaAuto)
	b.create(spec)
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
	state := func() string {
		m, err := b.pool.Lookup(b.ctx, "pvc-1")
		must(t, err)
		return m.QuotaState()
	}
	b.quota.unsupported = "switched off"
	must(t, b.pool.Resize(b.ctx, "pvc-1", expect, 2<<30))
	if got := state(); got != "none: switched off" {
		t.Errorf("while quotas are off: %s", got)
	}
	b.quota.unsupported = ""
	must(t, b.pool.Resize(b.ctx, "pvc-1", expect, 2<<30))
	if got := state(); got != "enforced" {
		t.Errorf("once they are on again: %s", got)
	}
	b.wantLimits(map[string]int64{"vol": 2 << 30})
	b.quota.unsupported = "switched off"
	must(t, b.delete(spec)) // and nothing is in its way
}

// TestAnIDTakenAfterACrashIsReplaced has a second process take the id of a
// marker whose directory was never made.
func TestAnIDTakenAfterACrashIsReplaced(t *testing.T) {
	b := newQuotaBench(t)
	spec := limited("pvc-1", "vol", directory.QuotaRequired)
	m := b.create(spec)
	must(t, os.Remove(b.path("vol"))) // as if it had not got that far
	b.quota.limits = map[uint32]int64{}

	other := newFastBench(t)
	pool := poolOn(t, local(t, other.base), func(o *directory.Options) { o.Quota = b.quota })
	b.quota.restart()
	if _, err := pool.Create(b.ctx, limited("pvc-9", "vol", directory.QuotaRequired)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	again := b.create(spec)
	if again.Project == m.Project || again.QuotaState() != "enforced" {
		t.Errorf("project %d, %s; it was %d, which is another volume's", again.Project, again.QuotaState(), m.Project)
	}
	stored, err := b.pool.Lookup(b.ctx, "pvc-1")
	must(t, err)
	if stored.Project != again.Project {
		t.Errorf("the marker says %d", stored.Project)
	}
}

// TestAVolumeThatLostItsIDIsLeftAlone is a volume that came back from a backup.
func TestAVolumeThatLostItsIDIsLeftAlone(t *testing.T) {
	b := newQuotaBench(t)
	spec := limited("pvc-1", "vol", directory.QuotaAuto)
	m := b.create(spec)
	b.data("vol")
	clear(b.quota.ids)
	b.quota.limits[m.Project] = 7 // somebody else's by now
	again := b.create(spec)
	if want := fmt.Sprintf("none: the directory has lost its project id %d", m.Project); again.QuotaState() != want {
		t.Errorf("state = %q", again.QuotaState())
	}
	must(t, b.pool.Resize(b.ctx, "pvc-1", directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}, 5<<30))
	must(t, b.delete(spec))
	if diff := cmp.Diff(map[uint32]int64{m.Project: 7}, b.quota.limits); diff != "" {
		t.Errorf("another's limit was touched: %s", diff)
	}
}

func TestUsageSaysWhatIsEnforced(t *testing.T) {
	b := newQuotaBench(t)
	for volume, mode := range map[string]directory.QuotaMode{"pvc-1": directory.QuotaRequired, "pvc-2": directory.QuotaNone, "pvc-3": directory.QuotaRequired, "pvc-4": directory.QuotaRequired} {
		b.create(limited(volume, volume, mode))
	}
	m, err := b.pool.Lookup(b.ctx, "pvc-3")
	must(t, err)
	delete(b.quota.limits, m.Project)
	must(t, os.Remove(b.path("pvc-4")))

	got := map[string]directory.VolumeUsage{}
	for u, err := range b.pool.Usage(b.ctx) {
		must(t, err)
		got[u.Volume] = u
	}
	claim := types.NamespacedName{Namespace: "ns", Name: "claim"}
	want := map[string]directory.VolumeUsage{
		"pvc-1": {Volume: "pvc-1", Claim: claim, Class: "class", Enforced: true, QuotaUsage: directory.QuotaUsage{LimitBytes: 1 << 30, Files: 1}},
		"pvc-2": {Volume: "pvc-2", Claim: claim, Class: "class", Reason: "its class says so"},
		"pvc-3": {Volume: "pvc-3", Claim: claim, Class: "class", Reason: "somebody has removed the limit"},
		"pvc-4": {Volume: "pvc-4", Claim: claim, Class: "class", Reason: "the directory is gone"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

// wantCounted checks that the volume counts as no smaller than it may become:
// what is refused because it counts as small must not have been given.
func (b *quotaBench) wantCounted(spec directory.Spec) {
	b.t.Helper()
	m, err := b.pool.Lookup(b.ctx, spec.Volume)
	must(b.t, err)
	if limit := b.quota.limits[m.Project]; limit > m.SizeBytes {
		b.t.Errorf("%s counts as %d bytes, and may have %d", spec.Volume, m.SizeBytes, limit)
	}
}

// A size that must be enforced, and can't be, is refused before anything counts as
// larger.
func TestGrowthThatMustBeEnforcedIsRefusedBeforeItBegins(t *testing.T) {
	for mode, refused := range map[directory.QuotaMode]bool{directory.QuotaRequired: true, directory.QuotaAuto: false} {
		b := newQuotaBench(t)
		spec := limited("pvc-1", "vol", mode)
		made := b.create(spec)
		expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
		must(t, b.pool.CheckResize(b.ctx, spec.Volume, expect))
		b.quota.unsupported = "mounted without quotas"
		if err := b.pool.CheckResize(b.ctx, spec.Volume, expect); provisioner.IsInfeasible(err) != refused {
			t.Errorf("%s: CheckResize = %v", mode, err)
		}
		other := expect
		other.ClaimUID = "another"
		wantError(t, "CheckResize", b.pool.CheckResize(b.ctx, spec.Volume, other), directory.ErrNotOwned)
		if m, err := b.pool.Lookup(b.ctx, spec.Volume); err != nil || m.SizeBytes != made.SizeBytes {
			t.Errorf("%s: it counts as %d bytes, %v", mode, m.SizeBytes, err)
		}
	}
}
