package hostpath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/request"
)

// TestWhatAnotherVolumeNamesIsNotAdopted: its marker may be lost. Nothing is recorded
// of the attempt.
func TestWhatAnotherVolumeNamesIsNotAdopted(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.use("n1")
	f.bring("n2")
	opts := adopting("n1")
	base := f.nodes["n2"].base
	want := filepath.Join(base, "restored/ns/claim")
	var asked string
	f.namedBy = func(node, poolID, in, path, except string) (string, error) {
		if node != "n2" || in != base || path != "restored/ns/claim" || except != opts.PVName {
			t.Errorf("asked who names %s of %s on %s (pool %q) but %s", path, in, node, poolID, except)
		}
		asked = poolID
		return "pvc-live", nil
	}
	f.wantRefused(opts, request.NamedRetry, `existing: "adopt"`, "PersistentVolume pvc-live names "+want, "Retain")
	f.wantRefused(opts, request.NamedRetry)
	if calls := f.nodes["n1"].calls.Load(); calls != 1 {
		t.Errorf("the other node was asked %d times in a minute", calls)
	}
	f.wantNothingMade()
	f.namedBy = func(_, _, _, _, _ string) (string, error) { return "", errors.New("the API server is down") }
	if _, _, err := f.driver.Provision(f.ctx, opts); err == nil {
		t.Error("adopted though nobody knows whose it is")
	}
	f.wantNothingMade()
	f.namedBy = func(_, _, _, _, _ string) (string, error) { return "", nil }
	volume := f.provision(opts)
	if id := volume.Annotations[hostpath.AnnPoolID]; asked != "" && asked != id {
		t.Errorf("asked for the pool %q, it is %q", asked, id)
	}
	if text, err := os.ReadFile(filepath.Join(volume.Spec.Local.Path, "data")); string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestOnlyAdoptionAsksWhoNamesADirectory: what is made is nobody else's.
func TestOnlyAdoptionAsksWhoNamesADirectory(t *testing.T) {
	f := newFleet(t, "n1")
	f.use("n1")
	f.namedBy = func(_, _, _, _, _ string) (string, error) { return "pvc-live", nil }
	f.provision(on("n1"))
}

func (f *fleet) askedWhoNames(_ context.Context, node, poolID, base, path, except string) (string, error) {
	if f.namedBy == nil {
		return "", nil
	}
	return f.namedBy(node, poolID, base, path, except)
}
