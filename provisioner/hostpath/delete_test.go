package hostpath_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/request"
)

func TestDeleteNeedsOnlyTheVolume(t *testing.T) {
	for _, volumeType := range []string{"local", "hostPath"} {
		b := newBench(t)
		volume := b.provision(askFor("volumeType", volumeType, "pathPattern", "team/vol"))
		b.restart()
		must(t, b.driver.Delete(b.ctx, volume))
		must(t, b.driver.Delete(b.ctx, volume))
		b.wantNothingMade()
	}
}

func TestDeleteHonoursOnDelete(t *testing.T) {
	for onDelete, where := range map[string]string{
		"archive": ".berth/archive/team_vol-pvc-1/data",
		"retain":  "team/vol/data",
	} {
		b := newBench(t)
		volume := b.provision(askFor("pathPattern", "team/vol", "onDelete", onDelete))
		must(t, os.WriteFile(filepath.Join(b.base, "team/vol/data"), nil, 0o644))
		must(t, b.driver.Delete(b.ctx, volume))
		must(t, b.driver.Delete(b.ctx, volume))
		if _, err := os.Stat(filepath.Join(b.base, where)); err != nil {
			t.Errorf("%s: %v", onDelete, err)
		}
	}
}

// elsewhere has a volume lie in a pool of another node.
func elsewhere(volume *corev1.PersistentVolume) {
	volume.Annotations[hostpath.AnnNode] = "node-2"
	volume.Annotations[hostpath.AnnPoolID] = "ANOTHER"
}

func TestForeignVolumesAreIgnored(t *testing.T) {
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"another pool":   elsewhere,
		"another driver": func(pv *corev1.PersistentVolume) { pv.Annotations[request.AnnDriver] = "nfs.berth.storage" },
		"no annotations": func(pv *corev1.PersistentVolume) { pv.Annotations = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			volume := b.provision(askFor())
			change(volume)
			if b.driver.ShouldDelete(b.ctx, volume) {
				t.Error("ShouldDelete = true")
			}
			var ignored *controller.IgnoredError
			if err := b.driver.Delete(b.ctx, volume); !errors.As(err, &ignored) {
				t.Errorf("Delete = %v", err)
			}
			if _, err := os.Stat(volume.Spec.Local.Path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestForgedVolumesAreRefused(t *testing.T) {
	for name, change := range map[string]func(b *bench, pv *corev1.PersistentVolume){
		"path annotation upwards": func(_ *bench, pv *corev1.PersistentVolume) { pv.Annotations[request.AnnPath] = "../../etc" },
		"path annotation gone":    func(_ *bench, pv *corev1.PersistentVolume) { delete(pv.Annotations, request.AnnPath) },
		"path of another volume": func(b *bench, pv *corev1.PersistentVolume) {
			pv.Annotations[request.AnnPath] = "victim"
			pv.Spec.Local.Path = filepath.Join(b.base, "victim")
		},
		"annotation of another volume": func(_ *bench, pv *corev1.PersistentVolume) { pv.Annotations[request.AnnPath] = "victim" },
		"source of another volume":     func(b *bench, pv *corev1.PersistentVolume) { pv.Spec.Local.Path = filepath.Join(b.base, "victim") },
		"source elsewhere":             func(_ *bench, pv *corev1.PersistentVolume) { pv.Spec.Local.Path = "/etc" },
		"source by way of dots": func(b *bench, pv *corev1.PersistentVolume) {
			pv.Spec.Local.Path = b.base + "/x/../ns-claim-pvc-1"
		},
		"no source":          func(_ *bench, pv *corev1.PersistentVolume) { pv.Spec.Local = nil },
		"another claim's":    func(_ *bench, pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "uid-9" },
		"no claim":           func(_ *bench, pv *corev1.PersistentVolume) { pv.Spec.ClaimRef = nil },
		"no claim UID":       func(_ *bench, pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "" },
		"pool is gone":       func(_ *bench, pv *corev1.PersistentVolume) { pv.Annotations[hostpath.AnnPool] = "nvme" },
		"another pool":       func(_ *bench, pv *corev1.PersistentVolume) { pv.Annotations[hostpath.AnnPool] = "ssd" },
		"no pool":            func(_ *bench, pv *corev1.PersistentVolume) { delete(pv.Annotations, hostpath.AnnPool) },
		"named like another": func(_ *bench, pv *corev1.PersistentVolume) { pv.Name = "pvc-victim" },
		"named like a path":  func(_ *bench, pv *corev1.PersistentVolume) { pv.Name = "../volumes/pvc-victim" },
		"the base": func(b *bench, pv *corev1.PersistentVolume) {
			pv.Annotations[request.AnnPath] = "."
			pv.Spec.Local.Path = b.base
		},
		"Berth's own": func(b *bench, pv *corev1.PersistentVolume) {
			pv.Annotations[request.AnnPath] = ".berth/volumes"
			pv.Spec.Local.Path = filepath.Join(b.base, ".berth/volumes")
		},
		"a volume unknown here": func(_ *bench, pv *corev1.PersistentVolume) { pv.Name = "pvc-9" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			victim := askFor("pathPattern", "victim")
			victim.PVName, victim.PVC.UID = "pvc-victim", "uid-victim"
			b.provision(victim)
			volume := b.provision(askFor())
			forged := volume.DeepCopy()
			change(b, forged)
			err := b.driver.Delete(b.ctx, forged)
			harmless := name == "a volume unknown here"
			if err == nil && !harmless {
				t.Error("no error")
			}
			if strings.HasPrefix(name, "pool") && (err == nil || !strings.Contains(err.Error(), "--pool nvme=")) {
				t.Errorf("%v does not name the flag", err)
			}
			for _, path := range []string{"victim", "ns-claim-pvc-1", ".berth/volumes/pvc-1.json", ".berth/volumes/pvc-victim.json"} {
				if _, err := os.Stat(filepath.Join(b.base, path)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDiscardFindsThePool(t *testing.T) {
	b := newBench(t)
	opts := askFor("pool", "ssd", "onDelete", "retain")
	volume := b.provision(opts)
	data := filepath.Join(volume.Spec.Local.Path, "data")
	must(t, os.WriteFile(data, nil, 0o644))
	record := b.driver.RecordOf(volume)
	if err := b.driver.Discard(b.ctx, record); !errors.Is(err, provisioner.ErrNotEmpty) {
		t.Errorf("Discard = %v", err)
	}
	must(t, os.Remove(data))
	must(t, b.driver.Discard(b.ctx, record))
	must(t, b.driver.Discard(b.ctx, record))
	b.wantNothingMade()
	b.provision(opts)
	must(t, b.driver.Discard(b.ctx, record))
	b.wantNothingMade()
}

func TestVolumesListsAllPoolsThatCanBeRead(t *testing.T) {
	b := newBench(t)
	first := b.provision(askFor())
	second := askFor("pool", "ssd")
	second.PVName, second.PVC.UID = "pvc-2", "uid-2"
	b.provision(second)
	list := func() (volumes []string, failed error) {
		for record, err := range b.driver.Volumes(b.ctx) {
			if err != nil {
				return volumes, err
			}
			volumes = append(volumes, record.Volume)
		}
		return volumes, nil
	}
	if volumes, err := list(); len(volumes) != 2 || err != nil {
		t.Errorf("Volumes = %v, %v", volumes, err)
	}
	must(t, os.Rename(b.base, b.base+"-gone"))
	defer func() { must(t, os.Rename(b.base+"-gone", b.base)) }()
	volumes, err := list()
	if len(volumes) != 1 || volumes[0] != "pvc-2" || err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("Volumes = %v, %v", volumes, err)
	}
	if err := b.driver.Discard(b.ctx, b.driver.RecordOf(first)); err == nil {
		t.Error("Discard succeeded without asking the pool that has the volume")
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	b := newBench(t)
	volume := b.provision(askFor())
	must(t, b.driver.Delete(b.ctx, volume))
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error)
	go func() { done <- b.driver.Run(ctx) }()
	cancel()
	must(t, <-done)
}

func TestSecondDriverOnOnePoolIsRefused(t *testing.T) {
	b := newBench(t)
	b.provision(askFor())
	_, _, err := b.open().Provision(b.ctx, askFor())
	if err == nil || !strings.Contains(err.Error(), "in use by another Berth") || provisioner.IsInfeasible(err) {
		t.Errorf("Provision = %v", err)
	}
}
