package nfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/nfsserver"
)

func TestDirectoryThatExistsIsRefusedOrAdopted(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		made := b.provision(b.ask("first"))
		must(t, os.MkdirAll(b.path("ns/theirs"), 0o751))
		must(t, os.Chmod(b.path("ns/theirs"), 0o751))
		must(t, os.WriteFile(b.path("ns/theirs", "file"), nil, 0o600))
		b.wantInfeasible(b.ask("theirs", "pathPattern", byNamespace), "StorageClass parameter pathPattern", `"ns/theirs"`, "existing", "adopt")
		adopted := b.provision(b.ask("theirs", "pathPattern", byNamespace, "existing", "adopt"))
		wantDirectory(t, b.path("ns/theirs"), 0o751, 0, 0)
		wantNames(t, b.path("ns/theirs"), "file")
		if got := adopted.Annotations[request.AnnAdopted] + made.Annotations[request.AnnAdopted]; got != "true" {
			t.Errorf("annotations: %q", got)
		}
		for volume, want := range map[*corev1.PersistentVolume]string{made: "made a new directory", adopted: `adopted the directory "ns/theirs" with what is in it`} {
			if notice := b.driver.Notice(volume); notice != want {
				t.Errorf("Notice = %q, want %q", notice, want)
			}
		}
	})
}

// byNamespace is a pattern that may adopt.
const byNamespace = "${pvc.namespace}/${pvc.name}"

func TestAdoptionMakesNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		must(t, os.Mkdir(b.path(".berth"), 0o700))
		opts := b.ask("theirs", "pathPattern", byNamespace, "existing", "adopt")
		for range 2 {
			_, _, err := b.driver.Provision(b.ctx, opts)
			wantWords(t, err, "no directory to adopt", `existing: "adopt"`, `"ns/theirs"`, "none is made")
			if wait, _ := provisioner.RetryAfter(err); wait != time.Minute || provisioner.IsInfeasible(err) {
				t.Errorf("again after %s: %v", wait, err)
			}
			must(t, os.MkdirAll(b.path("ns"), 0o755))
		}
		wantNames(t, b.path("ns"))
		wantNames(t, b.path(".berth/volumes"))
		must(t, os.Mkdir(b.path("ns/theirs"), 0o755))
		b.provision(opts)
	})
}

// TestWhatAnotherVolumeNamesIsNotAdopted: its marker may be lost. Nothing is recorded
// of the attempt.
func TestWhatAnotherVolumeNamesIsNotAdopted(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		must(t, os.MkdirAll(b.path("ns/theirs"), 0o755))
		must(t, os.Mkdir(b.path(".berth"), 0o700))
		opts := b.ask("theirs", "pathPattern", byNamespace, "existing", "adopt")
		server, share := opts.StorageClass.Parameters["server"], opts.StorageClass.Parameters["share"]
		want := share + "/ns/theirs"
		other, problem := "pvc-live", error(nil)
		b.options.NamedBy = func(_ context.Context, at nfs.Share, path, except string) (string, error) {
			if at.Server != server || at.Path != share || path != "ns/theirs" || except != opts.PVName {
				t.Errorf("asked who names %s of %+v but %s", path, at, except)
			}
			return other, problem
		}
		b.restart()
		_, _, err := b.driver.Provision(b.ctx, opts)
		wantWords(t, err, `existing: "adopt"`, "PersistentVolume pvc-live names "+want, "Retain")
		if wait, _ := provisioner.RetryAfter(err); wait != request.NamedRetry || provisioner.IsInfeasible(err) {
			t.Errorf("again after %s: %v", wait, err)
		}
		problem = errors.New("the API server is down")
		if _, _, err := b.driver.Provision(b.ctx, opts); err == nil {
			t.Error("adopted though nobody knows whose it is")
		}
		wantNames(t, b.path(".berth"))
		other, problem = "", nil
		b.provision(opts)
	})
}

func TestOneOfManyAdopts(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		must(t, os.MkdirAll(b.path("ns/theirs"), 0o755))
		must(t, os.Mkdir(b.path(".berth"), 0o700))
		var (
			all  sync.WaitGroup
			wins atomic.Int64
		)
		for i := range 6 {
			opts := b.ask("theirs", "pathPattern", byNamespace, "existing", "adopt")
			opts.PVName, opts.PVC.UID = fmt.Sprintf("pvc-%d", i), types.UID(fmt.Sprintf("uid-%d", i))
			all.Go(func() {
				_, _, err := b.driver.Provision(b.ctx, opts)
				if err == nil {
					wins.Add(1)
				} else if !provisioner.IsInfeasible(err) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if wins.Load() != 1 {
			t.Errorf("%d have adopted it", wins.Load())
		}
	})
}

func TestPatternsThatLetTenantsTakeDirectoriesAreRefused(t *testing.T) {
	b := newBench(t, "4.1", nfsserver.Export{})
	for _, pattern := range []string{"theirs", "restored-${pvc.namespace}-${pvc.name}", "${pvc.annotations['dir']}"} {
		opts := b.ask("data", "pathPattern", pattern, "existing", "adopt")
		opts.PVC.Annotations = map[string]string{"dir": "theirs"}
		b.wantInfeasible(opts, "StorageClass parameter pathPattern", pattern, "restored/${pvc.namespace}/${pvc.name}")
	}
	wantNames(t, b.base)
}
