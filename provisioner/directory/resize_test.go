package directory_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

func TestResizeRecordsTheLargestSize(t *testing.T) {
	b := newBench(t)
	spec := specFor("vol")
	b.create(spec)
	expect := directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}
	for _, size := range []int64{3 << 30, 2 << 30, 3 << 30} {
		must(t, b.pool.Resize(b.ctx, spec.Volume, expect, size))
		b.restart()
		m, err := b.pool.Lookup(b.ctx, spec.Volume)
		must(t, err)
		if m.SizeBytes != 3<<30 {
			t.Errorf("size = %d after %d was asked for", m.SizeBytes, size)
		}
	}
}

func TestResizeWantsTheMarkerToAgree(t *testing.T) {
	b := newBench(t)
	spec := specFor("vol")
	b.create(spec)
	for name, expect := range map[string]directory.Expectation{
		"claim": {ClaimUID: "another", Path: spec.Path},
		"path":  {ClaimUID: spec.ClaimUID, Path: "other"},
	} {
		wantError(t, "Resize with another "+name, b.pool.Resize(b.ctx, spec.Volume, expect, 5<<30), directory.ErrNotOwned)
	}
	err := b.pool.Resize(b.ctx, "pvc-unknown", directory.Expectation{ClaimUID: spec.ClaimUID, Path: spec.Path}, 5<<30)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Resize of an unknown volume = %v", err)
	}
	m, err := b.pool.Lookup(b.ctx, spec.Volume)
	must(t, err)
	if m.SizeBytes != spec.SizeBytes {
		t.Errorf("size = %d, want it unchanged", m.SizeBytes)
	}
}
