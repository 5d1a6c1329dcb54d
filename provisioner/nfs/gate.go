package nfs

import (
	"context"
	"errors"
	"time"

	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// gatePlaces is how many calls to one server are under way at most. It is
// half of what the controllers work on at a time, so that one server that
// goes silent leaves room for others until the gate closes.
const gatePlaces = 16

// through calls f when there is a place in g, and keeps the books on whether the
// server answers. It fails with a provisioner.UnavailableError when it does not.
//
// A call that has not ended after patience is given up with the error that
// silent makes. Then f goes on by itself, in its place: nothing can call off a
// system call on a mount whose server is silent.
func through[T any](ctx context.Context, g *gate.Gate, c clock.Clock, patience time.Duration, silent func() error, f func(context.Context) (T, error)) (T, error) {
	var none T
	if err := g.Enter(ctx); err != nil {
		return none, err
	}
	type outcome struct {
		value T
		err   error
	}
	result := make(chan outcome, 1)
	go func() {
		defer g.Leave()
		value, err := f(ctx)
		result <- outcome{value, err}
	}()
	timer := c.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-result:
		return r.value, settle(g, r.err)
	case <-timer.C():
		return none, settle(g, silent())
	}
}

// settle tells the gate how a call ended.
func settle(g *gate.Gate, err error) error {
	switch {
	case errors.Is(err, client.ErrBusy):
		return g.Settle(gate.Busy, err)
	case errors.Is(err, client.ErrUnreachable):
		return g.Settle(gate.Silent, briefly(err))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return g.Settle(gate.Unknown, err)
	}
	return g.Settle(gate.Answers, err)
}

// briefly leaves of an error nothing but which server does not answer: what was
// asked of it, and what failed after that, does not matter any more.
func briefly(err error) error {
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		return unreachable
	}
	return err
}
