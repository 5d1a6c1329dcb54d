package nfs

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// errSilent is what the client says of a server that does not answer.
var errSilent = fmt.Errorf("server nas:2049 did not answer within 5s: %w", client.ErrUnreachable)

// pass sends f through a gate with 15 s of patience.
func pass(ctx context.Context, g *gate.Gate, f func(context.Context) (int, error)) error {
	_, err := through(ctx, g, clock.RealClock{}, 15*time.Second, func() error { return errSilent }, f)
	return err
}

func answers(context.Context) (int, error) { return 1, nil }

func TestACallThatCantBeCalledOffIsGivenUpButKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(clock.RealClock{}, 1)
		hang := make(chan struct{})
		start := time.Now()
		err := pass(t.Context(), g, func(context.Context) (int, error) { <-hang; return 1, nil })
		if wait, ok := provisioner.RetryAfter(err); !ok || wait <= 0 || !errors.Is(err, errSilent) {
			t.Errorf("error %v, retry after %s", err, wait)
		}
		if time.Since(start) != 15*time.Second {
			t.Errorf("given up after %s", time.Since(start))
		}
		time.Sleep(gate.ReopenMax)
		if err := pass(t.Context(), g, answers); err == nil {
			t.Error("the place was free while the call went on")
		}
		close(hang)
		synctest.Wait()
		time.Sleep(gate.ReopenMax)
		if err := pass(t.Context(), g, answers); err != nil {
			t.Error(err)
		}
	})
}

func TestOnlySilenceClosesTheGate(t *testing.T) {
	refusal := errors.New("permission denied")
	for name, tt := range map[string]struct {
		err         error
		open, retry bool
	}{
		"a refusal":               {refusal, true, false},
		"a server that is busy":   {fmt.Errorf("write: %w", client.ErrBusy), true, true},
		"a caller that gave up":   {context.Canceled, true, false},
		"a server that is silent": {errSilent, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := gate.New(clock.RealClock{}, 1)
			err := pass(t.Context(), g, func(context.Context) (int, error) { return 0, tt.err })
			if _, retry := provisioner.RetryAfter(err); retry != tt.retry || !errors.Is(err, tt.err) {
				t.Errorf("error %v, says when to retry: %t", err, retry)
			}
			if open := g.Closed() == nil; open != tt.open {
				t.Errorf("open: %t", open)
			}
		})
	}
}
