// Package nfsfaults creates and deletes volumes on real NFS servers that stall,
// and whose network loses calls and replies: make test-nfs-faults.
package nfsfaults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/provisioner/nfs/client/nfsfs"
	"github.com/berth-storage/berth/test/lib/knfsd"
	"github.com/berth-storage/berth/test/lib/lossyproxy"
	"github.com/berth-storage/berth/test/nfsserver"
	"github.com/berth-storage/berth/test/uml"
)

const (
	// countEnv says how many volumes are created, and deleted, in each run;
	// without it there is none.
	countEnv = "BERTH_NFS_FAULTS_N"
	// seedEnv repeats what an earlier run drew.
	seedEnv = "BERTH_NFS_FAULTS_SEED"
)

var (
	versions = []client.Version{client.Version41, client.Version3}
	lossy    = lossyproxy.Faults{Lose: 0.002, Reset: 0.004, Delay: 0.02, LongestDelay: 3 * time.Second}
)

const (
	// A disk stalls for longer than a call waits for its answer.
	answerTimeout = 2 * time.Second
	stallFor      = 3500 * time.Millisecond
	// In between so many creations and deletions get through, or as many as do in
	// that time.
	pauseDone, longestPause = 48, 15 * time.Second

	lossyAnswerTimeout  = time.Second
	silentConnectionEnd = 5 * time.Second
)

// settings returns how many volumes there are, and the seed.
func settings(t *testing.T) (n int, seed uint64) {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv(countEnv))
	if err != nil {
		t.Skipf("make test-nfs-faults sets %s, how many volumes to create and delete", countEnv)
	}
	if seed, err = strconv.ParseUint(os.Getenv(seedEnv), 10, 64); err != nil {
		seed = rand.Uint64N(1 << 32)
	}
	return n, seed
}

func TestLinux(t *testing.T) {
	n, seed := settings(t)
	t.Parallel()
	mkfs := []string{"mkfs.ext4", "-q"}
	m := uml.New(t, uml.Disk{Name: "stalling", Make: mkfs}, uml.Disk{Name: "steady", Make: mkfs})
	m.Timeout, m.Env = 10*time.Minute+time.Duration(n)*time.Second, []string{countEnv, seedEnv}
	m.Run(t, "stalls", func(t *testing.T) {
		server := knfsd.Start(t, m, "stalling")
		for _, version := range versions {
			t.Run(string(version), func(t *testing.T) {
				name := server.Export(t)
				s := newStorm(t, seed, filepath.Join(server.Base, name), client.Options{
					Port: knfsd.Port, MountPort: server.MountPort, Share: shareOf(server, version, name), Version: version,
				}, client.PoolOptions{AnswerTimeout: answerTimeout})
				end := s.stallNowAndThen(server)
				s.run(n)
				stalls := end()
				s.conclude("Linux' NFS server, "+fmt.Sprintf("%d stalls of %s", stalls, stallFor), n)
			})
		}
	})
	m.Run(t, "lossy", func(t *testing.T) {
		server := knfsd.Start(t, m, "steady")
		for _, version := range versions {
			t.Run(string(version), func(t *testing.T) {
				name := server.Export(t)
				behindProxy(t, "Linux' NFS server", knfsd.Port, filepath.Join(server.Base, name), client.Options{
					MountPort: server.MountPort, Share: shareOf(server, version, name), Version: version,
				})
			})
		}
	})
}

func TestGanesha(t *testing.T) {
	settings(t)
	t.Parallel()
	for _, version := range versions {
		t.Run(string(version), func(t *testing.T) {
			base := t.TempDir()
			server := nfsserver.ForTest(t, nfsserver.Export{Path: base})
			behindProxy(t, "NFS-Ganesha", server.Port, base, client.Options{MountPort: server.MountPort, Share: base, Version: version})
		})
	}
}

func shareOf(server *knfsd.Server, version client.Version, name string) string {
	if version == client.Version3 {
		return filepath.Join(server.Base, name)
	}
	return "/" + name
}

func behindProxy(t *testing.T, server string, port uint16, base string, o client.Options) {
	t.Helper()
	n, seed := settings(t)
	proxy := lossyproxy.New(t, fmt.Sprintf("127.0.0.1:%d", port), seed, lossy)
	o.Port = proxy.Port()
	s := newStorm(t, seed, base, o, client.PoolOptions{AnswerTimeout: lossyAnswerTimeout, IdleTimeout: silentConnectionEnd})
	s.run(n)
	s.conclude(fmt.Sprintf("%s behind a proxy, %+v", server, proxy.Counts()), n)
}

// newStorm begins with a pool that is initialised.
func newStorm(t *testing.T, seed uint64, base string, o client.Options, options client.PoolOptions) *storm {
	t.Helper()
	o.Server, o.Timeout, o.Pool = "127.0.0.1", 15*time.Second, client.NewPool(options)
	t.Cleanup(o.Pool.Close)
	s := &storm{t: t, base: base, seed: seed}
	random := rand.New(rand.NewPCG(seed, workers))
	var c *client.Client
	s.until(random, "the share", func(context.Context) (err error) { c, err = client.Dial(t.Context(), o); return err })
	t.Cleanup(func() { _ = c.Close() })
	s.pool = directory.NewPool(nfsfs.New(c), directory.Options{Name: "share", Driver: "nfs", Recheck: time.Second, Log: logr.Discard()})
	t.Cleanup(func() { _ = s.pool.Close() })
	return s
}

// stallNowAndThen makes the disk stall, until end is called, which says how
// often it did.
func (s *storm) stallNowAndThen(server *knfsd.Server) (end func() int) {
	stop, stalls := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			if !s.pause(stop) {
				stalls <- n
				return
			}
			thaw, err := server.Stall()
			if err != nil {
				s.t.Error(err)
				continue
			}
			time.Sleep(stallFor)
			if err := thaw(); err != nil {
				s.t.Error(err)
			}
		}
	}()
	return func() int {
		close(stop)
		return <-stalls
	}
}

// pause reports false when it was stopped.
func (s *storm) pause(stop <-chan struct{}) bool {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for begun, before := time.Now(), s.done(); ; {
		select {
		case <-stop:
			return false
		case <-ticker.C:
			if s.done() >= before+pauseDone || time.Since(begun) >= longestPause {
				return true
			}
		}
	}
}

// conclude looks at the end and prints what came of it.
func (s *storm) conclude(what string, n int) {
	s.t.Helper()
	s.sweep()
	s.converged()
	s.t.Logf("%s, version %s, seed %d: %+v", what, filepath.Base(s.t.Name()), s.seed, s.tally)
	if s.Created != n || s.Deleted != n || s.bad() > 0 {
		s.t.Errorf("%d creations and deletions were asked for", n)
	}
	if s.Unknown == 0 {
		s.t.Error("no outcome was unknown: the faults were too few to show anything")
	}
}
