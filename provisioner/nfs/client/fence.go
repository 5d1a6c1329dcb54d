package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// change names what a call changes: entries, by the directory's handle and their
// name. A call that changes nothing, which alone may be made twice, has none.
type change []string

func changes(dir []byte, name string) change { return change{string(dir) + "/" + name} }

// fence keeps changes apart. A change whose outcome is unknown may be carried
// out long after its caller gave up, and would undo what was done about that in
// the meantime: so the next change of the same entry waits until the server is
// done with it.
type fence struct {
	mu      sync.Mutex
	pending map[string]<-chan struct{}
}

// errPending says that the fence is closed.
var errPending = errors.New("it has not finished an earlier change of the same entry")

// pass waits, for no longer than patience, until nothing is pending that touches
// the same. It fails with ErrBusy.
func (f *fence) pass(ctx context.Context, c change, patience time.Duration) error {
	var timer <-chan time.Time
	for _, entry := range c {
		f.mu.Lock()
		settled := f.pending[entry]
		f.mu.Unlock()
		if settled == nil {
			continue
		}
		if timer == nil {
			timer = time.After(patience)
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return busy(ctx, errPending)
		case <-timer:
			return fmt.Errorf("%w: %w", ErrBusy, errPending)
		}
	}
	return nil
}

// close keeps others from what c changes until open is called, and until those
// are done who have closed it before.
func (f *fence) close(c change) (open func()) {
	settled := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = map[string]<-chan struct{}{}
	}
	var before []<-chan struct{}
	for _, entry := range c {
		if earlier := f.pending[entry]; earlier != nil && earlier != settled {
			before = append(before, earlier)
		}
		f.pending[entry] = settled
	}
	settle := func() {
		for _, earlier := range before {
			<-earlier
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		close(settled)
		for _, entry := range c {
			if f.pending[entry] == settled {
				delete(f.pending, entry)
			}
		}
	}
	return func() { go settle() }
}

const (
	// longestDelay is how long a server without sessions may take to carry out a
	// change after its caller gave up.
	longestDelay = time.Minute
	// delayAfterLoss is the same when the connection is lost, and with it the
	// reply that would tell: the server may be at it at this moment.
	delayAfterLoss = 5 * time.Second
)

// awaitLate closes the fence until the late reply to c has come, or none is to be
// expected any more.
func (f *fence) awaitLate(c change, late <-chan []byte) {
	open := f.close(c)
	go func() {
		defer open()
		select {
		case _, answered := <-late:
			if !answered {
				time.Sleep(delayAfterLoss)
			}
		case <-time.After(longestDelay):
		}
	}()
}
