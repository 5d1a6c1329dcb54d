package client

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A change that names an entry twice does not wait for itself.
func TestFenceOpensForAChangeOfOneEntryTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f fence
		c := append(changes([]byte("dir"), "d"), changes([]byte("dir"), "d")...)
		f.close(c)()
		if err := f.pass(t.Context(), c, time.Second); err != nil {
			t.Error(err)
		}
	})
}

// Of two changes of an entry that are under way, both are waited for, in whatever
// order they end.
func TestFenceWaitsForAllChanges(t *testing.T) {
	for name, order := range map[string][2]int{"first to last": {0, 1}, "last to first": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f fence
				c := changes([]byte("dir"), "d")
				open := [2]func(){f.close(c), f.close(c)}
				pass := func() error { return f.pass(t.Context(), c, time.Second) }
				for _, i := range order {
					if err := pass(); !errors.Is(err, ErrBusy) {
						t.Errorf("before %d is done: %v, want ErrBusy", i, err)
					}
					open[i]()
				}
				if err := pass(); err != nil {
					t.Errorf("when both are done: %v", err)
				}
				if synctest.Wait(); len(f.pending) > 0 {
					t.Errorf("%d entries are left", len(f.pending))
				}
			})
		})
	}
}
