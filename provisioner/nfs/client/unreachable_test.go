package client_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// within is how long a call may take whose server may be silent for answer.
const (
	answer = 200 * time.Millisecond
	within = 10 * answer // the machine may be busy
)

func wantUnreachable(t *testing.T, err error, text string) {
	t.Helper()
	var unreachable *client.UnreachableError
	if !errors.Is(err, client.ErrUnreachable) || !errors.As(err, &unreachable) {
		t.Fatalf("error = %v, want ErrUnreachable", err)
	}
	if unreachable.Error() != text {
		t.Errorf("it says %q, want %q", unreachable, text)
	}
	if strings.Contains(err.Error(), "context") {
		t.Errorf("%v speaks of contexts", err)
	}
}

// silence makes the server answer nothing any more.
func (s *server) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = func(string) fault { return dropReply }
}

func TestSilentServerIsSaidToBeSilent(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		s.silence()
		begun := time.Now()
		_, err := root.Stat(t.Context())
		if took := time.Since(begun); took < answer || took > within {
			t.Errorf("it took %s to find out", took)
		}
		wantUnreachable(t, err, "server "+s.address+" did not answer within 200ms")
	})
}

func TestSilentServerIsNotAskedAgainForAMoment(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: time.Second}))
		s.silence()
		_, first := root.Stat(t.Context())
		begun := time.Now()
		_, second := root.Stat(t.Context())
		if took := time.Since(begun); took > time.Second/2 {
			t.Errorf("the second call took %s", took)
		}
		if !errors.Is(second, client.ErrUnreachable) {
			t.Errorf("first %v, then %v", first, second)
		}
		s.breakOnce("", 0, none)
		for err := second; err != nil; _, err = root.Stat(t.Context()) {
			if time.Since(begun) > within {
				t.Fatalf("the server is back, and still: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestChangeThatASilentServerMayHaveMadeHasAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		s.silence()
		err := root.Mkdir(t.Context(), "d", 0o755)
		if !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("error = %v, want ErrOutcomeUnknown", err)
		}
		wantUnreachable(t, err, "server "+s.address+" did not answer within 200ms")
	})
}

func TestServerThatIsDownIsSaidToRefuse(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		s.stop()
		_, err := root.Stat(t.Context())
		wantUnreachable(t, err, "server "+s.address+": "+syscall.ECONNREFUSED.Error())

		_, err = client.Dial(t.Context(), s.options(version))
		wantUnreachable(t, err, "server "+s.address+": "+syscall.ECONNREFUSED.Error())
	})
}

func TestUnknownHostIsNamed(t *testing.T) {
	t.Parallel()
	for _, version := range []client.Version{client.Version41, client.Version3} {
		_, err := client.Dial(t.Context(), client.Options{Server: "nas.invalid", Share: "/export", Version: version})
		if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "nas.invalid") {
			t.Errorf("error = %v", err)
		}
	}
}

func TestServerThatAsksForTimeTooLongIsBusy(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		options := s.options(version)
		options.Timeout = time.Second // the machine may be busy too
		root := rootOf(t, s.dialWith(options, client.PoolOptions{}))
		s.answerFirst("lookup", 1<<30, 10008)
		_, err := root.Lstat(t.Context(), "x")
		if !errors.Is(err, client.ErrBusy) || errors.Is(err, client.ErrUnreachable) {
			t.Errorf("error = %v, want ErrBusy", err)
		}
		for _, word := range []string{"1s", "lookup", "busy"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%v does not say %q", err, word)
			}
		}
	})
}

// A server that answers others is not silent, however long one call takes it.
func TestServerThatIsSlowWithOneCallIsNotSilent(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dialWith(s.options(version), client.PoolOptions{AnswerTimeout: answer}))
		release := s.hold("mkdir")
		done := make(chan error, 1)
		go func() { done <- root.Mkdir(t.Context(), "d", 0o755) }()
		for begun := time.Now(); time.Since(begun) < 3*answer; {
			_, err := root.Stat(t.Context())
			must(t, err)
			time.Sleep(answer / 10)
		}
		select {
		case err := <-done:
			t.Fatalf("Mkdir = %v before its reply", err)
		default:
		}
		release()
		must(t, <-done)
	})
}
