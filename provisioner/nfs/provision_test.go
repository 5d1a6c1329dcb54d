package nfs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/nfsserver"
)

func TestProvisionDescribesAnNFSVolume(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		opts := b.ask("data")
		opts.StorageClass.MountOptions = []string{"hard"}
		opts.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{
			corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod,
		}
		got, _, err := b.driver.Provision(b.ctx, opts)
		must(t, err)
		parameters := opts.StorageClass.Parameters
		annotations := map[string]string{
			"berth.storage/driver":     "nfs.berth.storage",
			"berth.storage/path":       "ns-data-pvc-data",
			"berth.storage/on-delete":  "delete",
			"berth.storage/claim":      "ns/data",
			"berth.storage/nfs-server": parameters["server"],
			"berth.storage/nfs-share":  parameters["share"],
		}
		mountOptions := []string{"hard"}
		if b.way != mounted {
			annotations["berth.storage/nfs-version"] = b.way
			annotations["berth.storage/nfs-port"] = parameters["port"]
			annotations["berth.storage/nfs-mount-port"] = parameters["mountPort"]
			mountOptions = append(mountOptions, "nfsvers="+b.way, "port="+parameters["port"], "mountport="+parameters["mountPort"])
		}
		mode := corev1.PersistentVolumeFilesystem
		want := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-data", Annotations: annotations},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				AccessModes:                   opts.PVC.Spec.AccessModes,
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				MountOptions:                  mountOptions,
				VolumeMode:                    &mode,
				PersistentVolumeSource: corev1.PersistentVolumeSource{
					NFS: &corev1.NFSVolumeSource{Server: parameters["server"], Path: parameters["share"] + "/ns-data-pvc-data"},
				},
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		wantDirectory(t, b.path("ns-data-pvc-data"), 0o770, 0, 0)
	})
}

func TestProvisionHonoursParameters(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		retain := corev1.PersistentVolumeReclaimRetain
		opts := b.ask("data", "pathPattern", "${pvc.namespace}/${pvc.labels['app']}", "onDelete", "archive",
			"mode", "2775", "uid", "1234", "gid", "4321", "existing", "refuse")
		opts.StorageClass.ReclaimPolicy = &retain
		opts.StorageClass.AllowedTopologies = []corev1.TopologySelectorTerm{{
			MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"a", "b"}}},
		}}
		volume := b.provision(opts)
		if !strings.HasSuffix(volume.Spec.NFS.Path, "/ns/db") || volume.Spec.PersistentVolumeReclaimPolicy != retain ||
			volume.Annotations[request.AnnPath] != "ns/db" || volume.Annotations[request.AnnOnDelete] != "archive" {
			t.Errorf("volume = %+v", volume)
		}
		affinity := &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"a", "b"}}},
		}}}}
		if diff := cmp.Diff(affinity, volume.Spec.NodeAffinity); diff != "" {
			t.Error(diff)
		}
		// The setgid bit too, which servers drop when they make a directory.
		wantDirectory(t, b.path("ns", "db"), 0o2775, 1234, 4321)
		wantDirectory(t, b.path("ns"), 0o755, 0, 0)
	})
}

func TestProvisionIsIdempotentAcrossRestarts(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		first := b.provision(b.ask("data"))
		must(t, os.WriteFile(b.path("ns-data-pvc-data", "file"), []byte("data"), 0o600))
		b.restart()
		// What the pattern says now does not count any more.
		again := b.provision(b.ask("data", "pathPattern", "elsewhere"))
		if again.Spec.NFS.Path != first.Spec.NFS.Path {
			t.Errorf("path = %s, was %s", again.Spec.NFS.Path, first.Spec.NFS.Path)
		}
		b.wantVolumes("ns-data-pvc-data")
		wantNames(t, b.path("ns-data-pvc-data"), "file")
	})
}

func TestPathIsRememberedWhenItsLabelIsGone(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		opts := b.ask("data", "pathPattern", "${pvc.labels['app']}")
		b.provision(opts)
		b.restart()
		opts.PVC.Labels = nil
		if volume := b.provision(opts); volume.Annotations[request.AnnPath] != "db" {
			t.Errorf("path = %s", volume.Annotations[request.AnnPath])
		}
		opts.PVName, opts.PVC.UID = "pvc-other", "uid-other"
		b.wantInfeasible(opts, "pvc.labels['app']")
	})
}

func TestClaimsThatADirectoryCantServeAreInfeasible(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	b := newBench(t, "4.1", nfsserver.Export{})
	for field, change := range map[string]func(*corev1.PersistentVolumeClaimSpec){
		"spec.selector": func(s *corev1.PersistentVolumeClaimSpec) {
			s.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		},
		"spec.volumeMode": func(s *corev1.PersistentVolumeClaimSpec) { s.VolumeMode = &block },
		"spec.dataSource": func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
		},
		"spec.resources.requests.storage": func(s *corev1.PersistentVolumeClaimSpec) { s.Resources.Requests = nil },
	} {
		opts := b.ask("data")
		change(&opts.PVC.Spec)
		b.wantInfeasible(opts, "claim field "+field)
	}
	wantNames(t, b.base)
}

func TestVolumesNeverOverlap(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		b.provision(b.ask("a", "pathPattern", "x/ns"))
		for _, pattern := range []string{"x/ns", "x", "x/ns/z"} {
			b.wantInfeasible(b.ask("b", "pathPattern", pattern), "pathPattern")
		}
		for _, pattern := range []string{"x/${pvc.namespace}", "x/${pvc.namespace}/z"} {
			b.wantInfeasible(b.ask("b", "pathPattern", pattern, "existing", "adopt"), "pathPattern")
		}
	})
}

// A class may reach the same directory in another version of the protocol.
func TestSharesThatAreTheSameDirectoryKnowOfEachOther(t *testing.T) {
	b := newBench(t, "4.1", nfsserver.Export{})
	b.provision(b.ask("a", "pathPattern", "x/y"))
	byPath := append(shareParameters(b.server, b.base, "3"), "pathPattern", "x/y/z")
	b.wantInfeasible(askFor("b", byPath...), "pathPattern")
	byPath[len(byPath)-1] = "x/z"
	b.provision(askFor("b", byPath...))
	wantNames(t, b.path("x"), "y", "z")
}

// The share of another class lies in this one.
func TestVolumesKeepClearOfOtherShares(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		if b.way == mounted {
			t.Skip("a share in a share is one only to who mounts neither")
		}
		must(t, os.Mkdir(b.path("team"), 0o755))
		must(t, os.Mkdir(b.path(".berth"), 0o700))
		inner := b.ask("inner")
		inner.StorageClass.Parameters["share"] += "/team"
		b.provision(inner)
		for _, pattern := range []string{"team", "team/x"} {
			b.wantInfeasible(b.ask("outer", "pathPattern", pattern), "pathPattern", "/team", "another class")
		}
		b.wantInfeasible(b.ask("outer", "pathPattern", "team/${pvc.namespace}", "existing", "adopt"), "pathPattern", "/team", "another class")
		b.provision(b.ask("outer", "pathPattern", "teams/x"))
		wantNames(t, b.path("team"), ".berth", "ns-inner-pvc-inner")
	})
}

func TestShareWithContentIsRefusedUntilAnAdministratorAgrees(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		must(t, os.Mkdir(b.path("theirs"), 0o755))
		b.wantRefused(b.ask("data"), "share ", ":"+b.ask("data").StorageClass.Parameters["share"], "not empty", "make an empty directory .berth")
		wantNames(t, b.base, "theirs")
		must(t, os.Mkdir(b.path(".berth"), 0o700))
		b.provision(b.ask("data"))
	})
}

func TestShareThatDoesNotExistIsNamed(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		if b.way == mounted {
			t.Skip("whoever mounted it found it")
		}
		opts := b.ask("data")
		opts.StorageClass.Parameters["share"] = "/nowhere"
		b.wantRefused(opts, "share 127.0.0.1:/nowhere", "does not export")
		opts.StorageClass.Parameters["share"] = b.ask("").StorageClass.Parameters["share"] + "/sub"
		b.wantRefused(opts, "/sub")
		must(t, os.Mkdir(b.path("sub"), 0o755))
		b.provision(opts)
		wantNames(t, b.path("sub"), ".berth", "ns-data-pvc-data")
	})
}

func TestShareThatIsReadOnlyIsNamed(t *testing.T) {
	for _, way := range []string{"3", "4.0", "4.1"} {
		t.Run(way, func(t *testing.T) {
			b := newBench(t, way, nfsserver.Export{ReadOnly: true})
			b.wantRefused(b.ask("data"), "share ", "read-only")
		})
	}
}

func TestSquashedRootIsExplained(t *testing.T) {
	for _, way := range []string{"3", "4.0", "4.1"} {
		for _, squash := range []nfsserver.Squash{nfsserver.RootSquash, nfsserver.AllSquash} {
			t.Run(way+" "+string(squash), func(t *testing.T) {
				const anonymous = 4242
				b := newBench(t, way, nfsserver.Export{Squash: squash, AnonymousID: anonymous})
				b.wantRefused(b.ask("data"), "permission denied", "root_squash", "no_root_squash")
				wantNames(t, b.base)

				must(t, os.Chown(b.base, anonymous, anonymous))
				b.provision(b.ask("data", "mode", "2770"))
				wantDirectory(t, b.path("ns-data-pvc-data"), 0o2770, anonymous, anonymous)

				if squash == nfsserver.RootSquash {
					b.wantRefused(b.ask("owned", "uid", "1234"), "owner", "root_squash")
				}
				b.wantVolumes("ns-data-pvc-data")
				volume := b.provision(b.ask("again"))
				must(t, b.driver.Delete(b.ctx, volume))
			})
		}
	}
}

// A directory of Berth's that Berth can't close: it is not only squashing that
// forbids it.
func TestDirectoryThatCannotBeClosedIsExplained(t *testing.T) {
	for _, way := range []string{"3", "4.0", "4.1"} {
		t.Run(way, func(t *testing.T) {
			const anonymous = 4242
			b := newBench(t, way, nfsserver.Export{Squash: nfsserver.RootSquash, AnonymousID: anonymous})
			must(t, os.Chown(b.base, anonymous, anonymous))
			must(t, os.Mkdir(b.path(".berth"), 0o755))
			b.wantRefused(b.ask("data"), "close .berth", "mode 0755", "owner 0", "no_root_squash", "aclmode")
		})
	}
}

// Whatever a tenant plants in the share leads nowhere.
func TestSymbolicLinksLeadNowhere(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		b.provision(b.ask("first"))
		must(t, os.Symlink(b.outside, b.path("link")))
		must(t, os.Symlink("..", b.path("up")))
		must(t, os.Symlink(b.outside, b.path("ns")))
		for _, pattern := range []string{"link", "link/x", "up/outside", "up"} {
			b.wantRefused(b.ask("data", "pathPattern", pattern), "pathPattern", "symbolic link")
		}
		for _, pattern := range []string{"${pvc.namespace}", "${pvc.namespace}/x", "link/${pvc.namespace}", "up/outside/${pvc.namespace}"} {
			b.wantRefused(b.ask("data", "pathPattern", pattern, "existing", "adopt"), "pathPattern", "symbolic link")
		}
		must(t, os.Symlink(b.outside, b.path("share")))
		if b.way != mounted {
			opts := b.ask("data")
			opts.StorageClass.Parameters["share"] += "/share"
			b.wantRefused(opts, "/share")
		}
		b.wantUntouched()
	})
}

func TestHostileNamesStayOneName(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		for i, value := range []string{"../../outside", "/etc", "a/../b", ".", "..", "x\x00y", strings.Repeat("n", 256), ".berth", "a\nb", "\xff"} {
			opts := b.ask("data"+string(rune('a'+i)), "pathPattern", "${pvc.annotations['dir']}")
			opts.PVC.Annotations = map[string]string{"dir": value}
			volume, _, err := b.driver.Provision(b.ctx, opts)
			if err != nil {
				wantWords(t, err, "pathPattern")
				continue
			}
			if path := volume.Annotations[request.AnnPath]; strings.Contains(path, "/") {
				t.Errorf("%q became %q", value, path)
			}
			if _, err := os.Lstat(b.path(volume.Annotations[request.AnnPath])); err != nil {
				t.Errorf("%q: %v", value, err)
			}
		}
		b.wantUntouched()
		if entries, err := os.ReadDir(filepath.Dir(b.base)); err != nil || len(entries) != 2 {
			t.Errorf("beside the share there are %v, %v", entries, err)
		}
	})
}
