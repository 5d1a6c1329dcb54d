package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// sessionSlots is how many slots the server gives to a session.
const sessionSlots = 4

// eachRetry runs a test on servers of version 4.1 that differ in what they
// answer to a sequence id that they have seen.
func eachRetry(t *testing.T, test func(t *testing.T, s *server)) {
	t.Helper()
	for name, retries := range map[string]retry4{"compare shape": compareShape, "refuse uncached": refuseUncached, "send anything": sendAnything} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.retries = retries
			test(t, s)
		})
	}
}

func wantUnknown(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Fatalf("error = %v, want ErrOutcomeUnknown", err)
	}
}

func (s *server) stallingNow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stalling
}

// wantAllSlots looks that as many calls as the session has slots can be under
// way at a time.
func wantAllSlots(t *testing.T, s *server, root *client.Dir) {
	t.Helper()
	release := s.stall("lookup")
	defer release()
	var calls sync.WaitGroup
	for range sessionSlots {
		calls.Go(func() { _, _ = root.Lstat(t.Context(), "x") })
	}
	eventually(t, "all slots are in use", func() bool { return s.stallingNow() == sessionSlots })
	release()
	calls.Wait()
}

func TestChangesAreNotRepeatedWhenTheReplyIsLost(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{dropReply, closeConnection, truncateReply} {
		eachVersion(t, func(t *testing.T, s *server, version client.Version) {
			root := rootOf(t, s.dialWith(s.options(version), quick))
			s.breakOnce("mkdir", 1, f)
			wantUnknown(t, root.Mkdir(t.Context(), "d", 0o755))
			if n := s.count("mkdir"); n != 1 {
				t.Errorf("done %d times", n)
			}
			wantNames(t, s.base, "d")
		})
	}
}

func TestReadsAreRepeatedWhateverBecomesOfTheSlot(t *testing.T) {
	t.Parallel()
	eachRetry(t, func(t *testing.T, s *server) {
		root := rootOf(t, s.dialWith(s.options(client.Version41), quick))
		for range 2 * sessionSlots {
			s.breakOnce("getattr", 1, closeConnection)
			_, err := root.Stat(t.Context())
			must(t, err)
		}
		wantAllSlots(t, s, root)
	})
}

// A disk that stalls makes calls outlast the patience of their callers. None is
// done twice, and none that comes later gets the reply to another one.
func TestCallsAfterAStallAreDone(t *testing.T) {
	t.Parallel()
	eachRetry(t, func(t *testing.T, s *server) {
		root := rootOf(t, s.dialWith(s.options(client.Version41), quick))
		release := s.stall("mkdir")
		wantUnknown(t, root.Mkdir(t.Context(), "d", 0o755))
		must(t, eventuallyNot(t, client.ErrUnreachable, func() error { return root.WriteFile(t.Context(), "f", "tmp", []byte("x")) })) // others are served
		release()
		for i := range 10 * sessionSlots {
			name := fmt.Sprint("n", i)
			must(t, root.Mkdir(t.Context(), name, 0o755))
			if _, err := os.Lstat(filepath.Join(s.base, name)); err != nil {
				t.Fatalf("Mkdir said nil, and: %v", err)
			}
		}
		eventually(t, "the first is done", func() bool { return s.count("mkdir") == 10*sessionSlots+1 })
		wantAllSlots(t, s, root)
	})
}

func TestAllSlotsComeBackAfterALongStall(t *testing.T) {
	t.Parallel()
	eachRetry(t, func(t *testing.T, s *server) {
		options := s.options(client.Version41)
		options.Timeout = 3 * answer
		root := rootOf(t, s.dialWith(options, client.PoolOptions{AnswerTimeout: answer}))
		release := s.stall("mkdir")
		var calls sync.WaitGroup
		failed := make([]error, 100)
		for i := range failed {
			calls.Go(func() { failed[i] = root.Mkdir(t.Context(), fmt.Sprint("d", i), 0o755) })
		}
		calls.Wait()
		if n := s.stallingNow(); n != sessionSlots {
			t.Errorf("%d calls are under way", n)
		}
		release()
		unknown := 0
		for i, err := range failed {
			if err == nil {
				t.Errorf("Mkdir %d succeeded while the disk was stalled", i)
			}
			if errors.Is(err, client.ErrOutcomeUnknown) {
				unknown++
			}
		}
		if unknown != sessionSlots {
			t.Errorf("the outcome of %d calls is unknown", unknown)
		}
		eventually(t, "the server answers again", func() bool { _, err := root.Stat(t.Context()); return err == nil })
		wantAllSlots(t, s, root)
		if n := s.count("exchange_id"); n != 1 {
			t.Errorf("introduced %d times", n)
		}
	})
}

// What was done about an unknown outcome must not be undone by the change
// itself, when that is carried out at last.
func TestChangeThatIsUnderWayIsWaitedFor(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		release := s.stall("mkdir")
		wantUnknown(t, root.Mkdir(t.Context(), "d", 0o755))
		must(t, eventuallyNot(t, client.ErrUnreachable, func() error { return root.WriteFile(t.Context(), "f", "tmp", nil) }))
		if err := root.Rmdir(t.Context(), "d"); !errors.Is(err, client.ErrBusy) || errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("Rmdir = %v, want ErrBusy", err)
		}
		release()
		must(t, eventuallyNot(t, client.ErrBusy, func() error { return root.Rmdir(t.Context(), "d") }))
		wantNames(t, s.base, "f")
	})
}

// A server goes on with a call whose connection has broken.
func TestChangeIsWaitedForWhenTheConnectionBreaks(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		release := s.stall("mkdir")
		failed := make(chan error)
		go func() { failed <- root.Mkdir(t.Context(), "d", 0o755) }()
		eventually(t, "the call is under way", func() bool { return s.stallingNow() == 1 })
		s.hangUp()
		wantUnknown(t, <-failed)
		if err := root.Rmdir(t.Context(), "d"); !errors.Is(err, client.ErrBusy) {
			t.Errorf("Rmdir = %v, want ErrBusy", err)
		}
		release()
		must(t, eventuallyNot(t, client.ErrBusy, func() error { return root.Rmdir(t.Context(), "d") }))
		wantNames(t, s.base)
	})
}

// A session that is lost for another reason says nothing of the calls that the
// server is at.
func TestChangeIsWaitedForWhenTheSessionIsLost(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	root := rootOf(t, s.dialWith(s.options(client.Version41), client.PoolOptions{AnswerTimeout: answer}))
	release := s.stall("mkdir")
	wantUnknown(t, root.Mkdir(t.Context(), "d", 0o755))
	s.mu.Lock()
	s.state = newState4()
	s.mu.Unlock()
	must(t, eventuallyNot(t, client.ErrUnreachable, func() error { _, err := root.Stat(t.Context()); return err }))
	if n := s.count("exchange_id"); n != 2 {
		t.Fatalf("introduced %d times", n)
	}
	if err := root.Rmdir(t.Context(), "d"); !errors.Is(err, client.ErrBusy) {
		t.Errorf("Rmdir = %v, want ErrBusy", err)
	}
	release()
	must(t, eventuallyNot(t, client.ErrBusy, func() error { return root.Rmdir(t.Context(), "d") }))
	wantNames(t, s.base)
}

// eventuallyNot calls f until it fails with something else, or succeeds.
func eventuallyNot(t *testing.T, other error, f func() error) (err error) {
	t.Helper()
	eventually(t, fmt.Sprintf("no longer %v", other), func() bool { err = f(); return !errors.Is(err, other) })
	return err
}

// A slot that a server of version 4.1 does not want to give now is asked for
// again, and not used for another call with the same sequence id.
func TestSequenceThatIsPutOff(t *testing.T) {
	t.Parallel()
	eachRetry(t, func(t *testing.T, s *server) {
		root := rootOf(t, s.dial(client.Version41))
		s.answerFirst("sequence", 2*sessionSlots, 10008)
		must(t, root.Mkdir(t.Context(), "d", 0o755))
		must(t, root.Rmdir(t.Context(), "d"))
		wantAllSlots(t, s, root)
	})
}

// An error of SEQUENCE is no statement about a change that the server takes for
// an earlier one.
func TestChangeThatIsTakenForAnEarlierOneHasAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, status := range []uint32{10068, 10076} { // RETRY_UNCACHED_REP, SEQ_FALSE_RETRY
		s := newServer(t)
		root := rootOf(t, s.dial(client.Version41))
		s.answerFirst("sequence", 1, status)
		wantUnknown(t, root.Mkdir(t.Context(), "d", 0o755))
		s.answerFirst("sequence", 1, status)
		_, err := root.Stat(t.Context())
		must(t, err)
	}
}

func TestReclaimCompleteIsRepeatedUntilItIsTaken(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answerFirst("reclaim_complete", 2, 10008)
	root := rootOf(t, s.dial(client.Version41))
	must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
	if n := s.count("reclaim_complete"); n != 3 {
		t.Errorf("sent %d times", n)
	}
}

// Its first reply is lost, the second one says COMPLETE_ALREADY.
func TestReclaimCompleteMayHaveBeenTakenBefore(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.breakOnce("reclaim_complete", 1, closeConnection)
	root := rootOf(t, s.dial(client.Version41))
	must(t, root.WriteFile(t.Context(), "f", "tmp", []byte("x")))
	if n := s.count("exchange_id"); n != 1 {
		t.Errorf("introduced %d times", n)
	}
}

func TestSessionWithoutReclaimCompleteIsNotUsed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answerFirst("reclaim_complete", 1<<30, 10004) // NOTSUPP
	options := s.options(client.Version41)
	options.Pool = client.NewPool(client.PoolOptions{})
	t.Cleanup(options.Pool.Close)
	if _, err := client.Dial(t.Context(), options); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("Dial = %v", err)
	}
}

func TestClientThatIsForgottenAtOnceIsIntroducedAnew(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answerFirst("create_session", 2, 10022) // STALE_CLIENTID
	root := rootOf(t, s.dial(client.Version41))
	must(t, root.Mkdir(t.Context(), "d", 0o755))
	if n := s.count("exchange_id"); n != 3 {
		t.Errorf("introduced %d times", n)
	}
}

// Whose caller gives up, a call leaves a slot behind that nobody may use before
// the server is done with it; a session must not run out of them.
func TestSessionSurvivesCallersThatGiveUp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	root := rootOf(t, s.dialWith(s.options(client.Version41), quick))
	for range 20 {
		s.breakOnce("lookup", 1, dropReply)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := root.Lstat(ctx, "x")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Lstat = %v", err)
		}
		must(t, root.Mkdir(t.Context(), "d", 0o755))
		must(t, root.Rmdir(t.Context(), "d"))
	}
}

// A session that is lost along with the reply can't tell any more.
func TestOutcomeIsUnknownWhenTheSessionIsLostToo(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	root := rootOf(t, s.dialWith(s.options(client.Version41), quick))
	s.mu.Lock()
	s.after = func(op string) fault {
		if op != "mkdir" {
			return none
		}
		s.state = newState4()
		return closeConnection
	}
	s.mu.Unlock()
	if err := root.Mkdir(t.Context(), "d", 0o755); !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("Mkdir = %v, want ErrOutcomeUnknown", err)
	}
	if _, err := root.Lstat(t.Context(), "d"); err != nil {
		t.Errorf("Lstat = %v", err)
	}
}
