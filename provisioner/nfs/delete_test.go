package nfs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/nfsserver"
)

func TestDeleteMovesToTheTrashWhichIsPurged(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		volume := b.provision(b.ask("data"))
		dir := b.path("ns-data-pvc-data")
		must(t, os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "a/file"), []byte("data"), 0o600))
		must(t, os.Symlink(b.outside, filepath.Join(dir, "a/link")))
		must(t, os.Symlink(filepath.Join(b.outside, "precious"), filepath.Join(dir, "link")))
		b.restart() // a volume needs neither its class nor what the driver remembers
		must(t, b.driver.Delete(b.ctx, volume))
		b.wantVolumes()
		must(t, b.driver.Delete(b.ctx, volume))

		trash := b.path(".berth", "trash")
		if isEmpty(t, trash) {
			t.Error("the trash is empty before anybody purges it")
		}
		b.runUntil(func() bool { return isEmpty(t, trash) })
		b.wantUntouched()
	})
}

func TestRunPurgesWhatAnEarlierProcessLeft(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		opts := b.ask("data")
		must(t, b.driver.Delete(b.ctx, b.provision(opts)))
		b.options.Classes = func(context.Context) ([]storagev1.StorageClass, error) {
			return []storagev1.StorageClass{*opts.StorageClass}, nil
		}
		b.restart()
		b.runUntil(func() bool { return isEmpty(t, b.path(".berth", "trash")) })
	})
}

func TestDeleteArchivesOrRetains(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		archived := b.provision(b.ask("archived", "onDelete", "archive"))
		retained := b.provision(b.ask("retained", "onDelete", "retain"))
		for _, dir := range []string{"ns-archived-pvc-archived", "ns-retained-pvc-retained"} {
			must(t, os.WriteFile(b.path(dir, "file"), []byte("data"), 0o600))
		}
		must(t, b.driver.Delete(b.ctx, archived))
		must(t, b.driver.Delete(b.ctx, retained))
		b.wantVolumes("ns-retained-pvc-retained")
		wantNames(t, b.path(".berth", "archive"), "ns-archived-pvc-archived", "ns-archived-pvc-archived.json")
		wantNames(t, b.path(".berth", "archive", "ns-archived-pvc-archived"), "file")
		wantNames(t, b.path("ns-retained-pvc-retained"), "file")
	})
}

// A PersistentVolume is believed only as far as it agrees with itself and with
// the ownership marker.
func TestForgedVolumesAreNotTouched(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		victim := b.provision(b.ask("victim"))
		must(t, os.WriteFile(b.path("ns-victim-pvc-victim", "file"), nil, 0o600))
		must(t, os.Mkdir(b.path("unowned"), 0o755))
		point := func(v *corev1.PersistentVolume, path string) {
			v.Annotations[request.AnnPath] = path
			v.Spec.NFS.Path = v.Annotations[nfs.AnnShare] + "/" + path
		}
		for name, forge := range map[string]func(*corev1.PersistentVolume){
			"unowned directory":        func(v *corev1.PersistentVolume) { point(v, "unowned") },
			"out of the share":         func(v *corev1.PersistentVolume) { point(v, "../outside") },
			"absolute path":            func(v *corev1.PersistentVolume) { point(v, "/etc") },
			"berth's own directory":    func(v *corev1.PersistentVolume) { point(v, ".berth/volumes") },
			"path only in the source":  func(v *corev1.PersistentVolume) { v.Spec.NFS.Path += "/.." },
			"share only":               func(v *corev1.PersistentVolume) { v.Annotations[nfs.AnnShare] = "/" },
			"server only":              func(v *corev1.PersistentVolume) { v.Annotations[nfs.AnnServer] = "other" },
			"no share":                 func(v *corev1.PersistentVolume) { delete(v.Annotations, nfs.AnnShare) },
			"bad version":              func(v *corev1.PersistentVolume) { v.Annotations[nfs.AnnVersion] = "5" },
			"bad port":                 func(v *corev1.PersistentVolume) { v.Annotations[nfs.AnnPort] = "x" },
			"no source":                func(v *corev1.PersistentVolume) { v.Spec.NFS = nil },
			"another claim":            func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "uid-forged" },
			"no claim":                 func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil },
			"a claim without identity": func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "" },
		} {
			forged := victim.DeepCopy()
			forge(forged)
			if err := b.driver.Delete(b.ctx, forged); err == nil {
				t.Errorf("%s: no error", name)
			} else if provisioner.IsIgnored(err) {
				t.Errorf("%s: ignored", name)
			}
		}
		// This one's directory is gone, for all that Berth knows.
		other := victim.DeepCopy()
		other.Name = "pvc-forged"
		must(t, b.driver.Delete(b.ctx, other))

		b.wantVolumes("ns-victim-pvc-victim", "unowned")
		wantNames(t, b.path("ns-victim-pvc-victim"), "file")
		b.wantUntouched()
		must(t, b.driver.Delete(b.ctx, victim))
	})
}

func TestVolumesOfOtherDriversAreIgnored(t *testing.T) {
	b := newBench(t, "4.1", nfsserver.Export{})
	volume := b.provision(b.ask("data"))
	volume.Annotations[request.AnnDriver] = "hostpath.berth.storage"
	var ignored *controller.IgnoredError
	if err := b.driver.Delete(b.ctx, volume); !errors.As(err, &ignored) {
		t.Errorf("Delete = %v, want an ignored error", err)
	}
}

// The directory of a volume that was replaced by a link stays, and so does what
// the link leads to.
func TestVolumeThatWasReplacedByALinkIsNotFollowed(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		volume := b.provision(b.ask("data"))
		must(t, os.Remove(b.path("ns-data-pvc-data")))
		must(t, os.Symlink(b.outside, b.path("ns-data-pvc-data")))
		wantWords(t, b.driver.Delete(b.ctx, volume), "not a plain directory")
		b.wantUntouched()
	})
}

func TestDiscardTakesBackOnlyWhatIsEmpty(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		b.provision(b.ask("empty"))
		b.provision(b.ask("full"))
		must(t, os.WriteFile(b.path("ns-full-pvc-full", "file"), nil, 0o600))
		must(t, b.driver.Discard(b.ctx, provisioner.Record{Volume: "pvc-empty"}))
		must(t, b.driver.Discard(b.ctx, provisioner.Record{Volume: "pvc-unknown"}))
		if err := b.driver.Discard(b.ctx, provisioner.Record{Volume: "pvc-full"}); !errors.Is(err, provisioner.ErrNotEmpty) {
			t.Errorf("Discard = %v, want ErrNotEmpty", err)
		}
		b.wantVolumes("ns-full-pvc-full")
	})
}

func TestVolumesListsAllSharesThatKubernetesNames(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		volume := b.provision(b.ask("data"))
		known, err := nfs.Describes(volume)
		must(t, err)
		b.options.Volumes = func(context.Context) ([]nfs.Volume, error) { return []nfs.Volume{known}, nil }
		b.restart()
		var names []string
		for record, err := range b.driver.Volumes(b.ctx) {
			must(t, err)
			names = append(names, record.Volume+" of "+record.Claim.String())
		}
		if want := []string{"pvc-data of ns/data"}; !slices.Equal(names, want) {
			t.Errorf("volumes = %v, want %v", names, want)
		}
	})
}

// An export whose disk is missing looks like a new one.
func TestEmptyShareOfWhichKubernetesHasVolumesIsRefused(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		opts := b.ask("data")
		known, err := nfs.Describes(b.provision(opts))
		must(t, err)
		for _, name := range []string{".berth", "ns-data-pvc-data"} {
			must(t, os.RemoveAll(b.path(name)))
		}
		b.options.Volumes = func(context.Context) ([]nfs.Volume, error) { return []nfs.Volume{known}, nil }
		b.restart()
		b.wantRefused(b.ask("other"), "Kubernetes has volumes on", "is the right directory exported?")
		if !isEmpty(t, b.base) {
			t.Error("something was made")
		}

		// Those of another server, which may be the same machine, don't matter.
		if known.Share.Port++; b.way == mounted {
			known.Share.Server = "other"
		}
		b.provision(b.ask("other"))
	})
}

func TestShareOfAnotherClusterIsRefused(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		for _, cluster := range []string{"blue", "green"} {
			b.options.Cluster = func(context.Context) (string, error) { return cluster, nil }
			b.restart()
			if cluster == "blue" {
				b.provision(b.ask("data"))
			} else {
				b.wantRefused(b.ask("other"), "blue", "green", "directory of its own")
			}
		}
		b.wantVolumes("ns-data-pvc-data")
		if data, err := os.ReadFile(b.path(".berth", "pool.json")); err != nil || !strings.Contains(string(data), "blue") {
			t.Errorf("pool.json: %s, %v", data, err)
		}
	})
}
