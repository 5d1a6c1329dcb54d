package client_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// quick is a pool whose connections are given up soon.
var quick = client.PoolOptions{AnswerTimeout: 200 * time.Millisecond}

// eventually waits until what comes true.
func eventually(t *testing.T, what string, comes func() bool) {
	t.Helper()
	gomega.NewWithT(t).Eventually(comes, 10*time.Second, 5*time.Millisecond).Should(gomega.BeTrue(), what)
}

func TestReadsAreRepeatedAfterALostReply(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{dropReply, closeConnection, truncateReply} {
		eachVersion(t, func(t *testing.T, s *server, version client.Version) {
			s.retries = refuseUncached
			root := rootOf(t, s.dialWith(s.options(version), quick))
			times := 2
			if f == dropReply {
				times = 1 // twice as long is too long for one call
			}
			s.breakOnce("getattr", times, f)
			if _, err := root.Stat(t.Context()); err != nil {
				t.Errorf("Stat after fault %d: %v", f, err)
			}
		})
	}
}

func TestDuplicateRepliesAreIgnored(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), quick))
		s.breakOnce("mkdir", 5, duplicateReply)
		for _, name := range []string{"a", "b", "c"} {
			must(t, root.Mkdir(t.Context(), name, 0o755))
			_, err := root.Lstat(t.Context(), name)
			must(t, err)
		}
	})
}

func TestGarbledRepliesAreErrors(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), quick))
		for _, op := range []string{"getattr", "lookup", "mkdir", "readdir"} {
			s.breakOnce(op, 1, garbleReply)
			_, stat := root.Stat(t.Context())
			_, lookup := root.Open(t.Context(), "missing")
			mkdir := root.Mkdir(t.Context(), "d", 0o755)
			var readdir error
			for _, readdir = range root.ReadDir(t.Context()) {
				if readdir != nil {
					break
				}
			}
			_ = os.Remove(filepath.Join(s.base, "d"))
			if errors.Join(stat, lookup, mkdir, readdir) == nil {
				t.Errorf("a garbled %s went unnoticed", op)
			}
		}
		s.breakOnce("", 0, none)
		must(t, root.Mkdir(t.Context(), "after", 0o755))
	})
}

func TestServerThatAsksForTimeIsAskedAgain(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		for _, op := range []string{"getattr", "mkdir", "create", "write", "readdir", "rename", "remove"} {
			s.answerFirst(op, 3, 10008)
			_, err := root.Stat(t.Context())
			must(t, err)
			must(t, root.Mkdir(t.Context(), "d", 0o755))
			must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
			must(t, root.RemoveAll(t.Context(), "d"))
			must(t, root.Remove(t.Context(), "f"))
			for _, err := range root.ReadDir(t.Context()) {
				must(t, err)
			}
		}
		wantNames(t, s.base)
	})
}

func TestContextEndsAnything(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		c := s.dialWith(s.options(version), client.PoolOptions{})
		root := rootOf(t, c)
		for name, prepare := range map[string]func(){
			"delays":         func() { s.answerFirst("lookup", 1<<30, 10008) },
			"lost replies":   func() { s.breakOnce("lookup", 1<<30, dropReply) },
			"closed":         func() { s.breakOnce("lookup", 1<<30, closeConnection) },
			"nobody listens": s.stop,
		} {
			prepare()
			ctx, cancel := context.WithTimeout(t.Context(), 80*time.Millisecond)
			begun := time.Now()
			_, err := root.Lstat(ctx, "x")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 3*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begun))
			}
			s.answerFirst("", 0, 0)
			s.breakOnce("", 0, none)
			s.restart(100 * time.Millisecond)
			must(t, root.Mkdir(t.Context(), "d", 0o755))
			must(t, root.Rmdir(t.Context(), "d"))
		}
	})
}

// A call that runs into its deadline on a connection that says nothing must not
// leave the connection to the next one.
func TestSilentConnectionIsGivenUp(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: 400 * time.Millisecond}))
		before := s.dials()
		s.breakOnce("lookup", 1, dropReply)
		ctx, cancel := context.WithTimeout(t.Context(), 80*time.Millisecond)
		defer cancel()
		_, err := root.Lstat(ctx, "x")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lstat = %v", err)
		}
		must(t, root.Mkdir(t.Context(), "d", 0o755))
		if s.dials() == before {
			t.Error("the silent connection is still in use")
		}
	})
}

func TestRestartIsWaitedFor(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		must(t, root.WriteFile(t.Context(), "before", "tmp", []byte("x")))
		s.stop()
		eventually(t, "the client notices", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			_, err := root.Stat(ctx)
			return err != nil
		})
		done := make(chan error)
		go func() { done <- root.Mkdir(t.Context(), "d", 0o755) }()
		s.restart(200 * time.Millisecond)
		must(t, <-done)
		must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
		wantNames(t, s.base, "before", "d", "f")
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{IdleTimeout: 30 * time.Millisecond}))
		before := s.dials()
		eventually(t, "the connection is closed", func() bool { return s.openConnections() == 0 })
		must(t, root.Mkdir(t.Context(), "d", 0o755))
		if s.dials() != before+1 {
			t.Errorf("%d connections, before %d", s.dials(), before)
		}
	})
}

func TestUsedStateIsRenewed(t *testing.T) {
	t.Parallel()
	for _, version := range []client.Version{client.Version40, client.Version41} {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.lease = 1
			root := rootOf(t, s.dial(version))
			must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
			renewal, introduction := "renew", "setclientid"
			if version == client.Version41 {
				renewal, introduction = "sequence", "exchange_id"
			}
			before, introduced := s.count(renewal), s.count(introduction)
			eventually(t, "the state is renewed twice", func() bool { return s.count(renewal) >= before+2 })
			must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("y")))
			if s.count(introduction) != introduced {
				t.Error("the state was lost")
			}
		})
	}
}

func TestUnusedStateIsGivenUp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.lease = 1
	root := rootOf(t, s.dialWith(s.options(client.Version41), client.PoolOptions{IdleTimeout: time.Millisecond}))
	eventually(t, "session and client are given up", func() bool {
		return s.count("destroy_session") == 1 && s.count("destroy_clientid") == 1
	})
	must(t, root.Mkdir(t.Context(), "d", 0o755))
}

// TestAFileThatIsReplacedWhileItIsReadIsReadAnew: a call that its caller has given up
// may still rename or remove it, between the two that find and read it.
func TestAFileThatIsReplacedWhileItIsReadIsReadAnew(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		const stale = 70
		root := rootOf(t, s.dial(version))
		must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
		s.answerFirst("read", 1, stale)
		if data, err := root.ReadFile(t.Context(), "f", 10); err != nil || string(data) != "x" {
			t.Errorf("ReadFile = %q, %v", data, err)
		}
		s.answerFirst("read", 100, stale)
		if data, err := root.ReadFile(t.Context(), "f", 10); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("ReadFile of what stays unreadable = %q, %v", data, err)
		}
		s.mu.Lock()
		s.before = func(op string) uint32 {
			if op != "read" {
				return 0
			}
			_ = os.Remove(filepath.Join(s.base, "f"))
			return stale
		}
		s.mu.Unlock()
		if data, err := root.ReadFile(t.Context(), "f", 10); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ReadFile of what was removed meanwhile = %q, %v", data, err)
		}
	})
}

func TestForgottenStateIsMadeAnew(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		if version == client.Version3 {
			t.Skip("version 3 has no state")
		}
		root := rootOf(t, s.dial(version))
		for _, status := range []uint32{10011, 10022, 10023, 10025} { // EXPIRED, STALE_CLIENTID, STALE_STATEID, BAD_STATEID
			for _, op := range []string{"write", "close"} {
				s.answerFirst(op, 1, status)
				must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
			}
		}
		wantNames(t, s.base, "f")
		for _, status := range []uint32{10052, 10053, 10063, 10078, 10008} { // BADSESSION, BADSLOT, SEQ_MISORDERED, DEADSESSION, DELAY
			s.answerFirst("sequence", 1, status)
			must(t, root.Mkdir(t.Context(), "d", 0o755))
			must(t, root.Rmdir(t.Context(), "d"))
		}
	})
}
