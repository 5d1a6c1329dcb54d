package nfs_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/test/nfsserver"
)

// outage makes the server of a bench go away and come back.
type outage struct {
	name  string
	begin func(*nfsserver.Server) error
	end   func(*testing.T, *nfsserver.Server) error
	text  string
}

var outages = []outage{
	{
		"silent",
		(*nfsserver.Server).Pause,
		func(_ *testing.T, s *nfsserver.Server) error { return s.Resume() },
		"server %s:%d did not answer within 1s",
	},
	{
		"down",
		func(s *nfsserver.Server) error { s.Kill(); return nil },
		func(t *testing.T, s *nfsserver.Server) error { return s.Restart(t.Context()) },
		"server %s:%d: connection refused",
	},
}

func TestServerThatIsGoneIsNamedAndServedWhenItIsBack(t *testing.T) {
	for _, o := range outages {
		for _, way := range []string{"3", "4.0", "4.1"} {
			t.Run(o.name+" "+way, func(t *testing.T) {
				b := newBench(t, way, nfsserver.Export{})
				volume := b.provision(b.ask("before"))
				must(t, o.begin(b.server))
				want := fmt.Sprintf(o.text, nfsserver.Address, b.server.Port)
				_, _, err := b.driver.Provision(b.ctx, b.ask("data"))
				wantUnavailable(t, err, want)
				wantUnavailable(t, b.driver.Delete(b.ctx, volume), want)
				wantUnavailable(t, b.driver.Discard(b.ctx, provisioner.Record{Volume: "pvc-before"}), want)
				must(t, o.end(t, b.server))
				eventually(t, func() error { _, _, err := b.driver.Provision(b.ctx, b.ask("data")); return err })
				eventually(t, func() error { return b.driver.Delete(b.ctx, volume) })
				b.wantVolumes("ns-data-pvc-data")
			})
		}
	}
}

func wantUnavailable(t *testing.T, err error, text string) {
	t.Helper()
	if _, ok := provisioner.RetryAfter(err); !ok {
		t.Errorf("error = %v, want an unavailable one", err)
		return
	}
	wantWords(t, err, "share ", text)
	if strings.Contains(err.Error(), "context") || strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is %q", err)
	}
}

// eventually waits until f succeeds, for longer than a gate stays closed.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// The volumes of one server don't wait for another, and nothing is left of the
// waiting once that one is back.
func TestSilentServerDelaysItsOwnVolumesOnly(t *testing.T) {
	quiet, silent := newBench(t, "4.1", nfsserver.Export{}), newBench(t, "4.0", nfsserver.Export{})
	driver := quiet.driver // one driver serves both
	silent.driver = driver
	quiet.provision(quiet.ask("warm"))
	silent.provision(silent.ask("warm"))
	before := goroutines()
	must(t, silent.server.Pause())

	const volumes = 200
	var wg sync.WaitGroup
	refused := make(chan time.Duration, volumes)
	for i := range volumes {
		wg.Go(func() {
			begun := time.Now()
			if _, _, err := driver.Provision(t.Context(), silent.ask(fmt.Sprint("s", i))); err == nil {
				t.Error("a silent server made a volume")
			}
			refused <- time.Since(begun)
		})
	}
	for i := range volumes {
		begun := time.Now()
		quiet.provision(quiet.ask(fmt.Sprint("q", i)))
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("a volume of the other server took %s", took)
		}
	}
	wg.Wait()
	for range volumes {
		if took := <-refused; took > 10*time.Second {
			t.Errorf("a refusal took %s", took)
		}
	}

	must(t, silent.server.Resume())
	for i := range volumes {
		eventually(t, func() error { _, _, err := driver.Provision(t.Context(), silent.ask(fmt.Sprint("s", i))); return err })
	}
	entries, err := os.ReadDir(silent.base)
	must(t, err)
	if len(entries) != volumes+2 { // with .berth and the first volume
		t.Errorf("%d directories, want %d", len(entries), volumes+2)
	}
	eventually(t, func() error {
		if after := goroutines(); after > before+4 { // a connection may be a new one
			return fmt.Errorf("%d goroutines of this module, before %d", after, before)
		}
		return nil
	})
}

// goroutines counts those that run code of this module.
func goroutines() int {
	buffer := make([]byte, 16<<20)
	count := 0
	for stack := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		if strings.Contains(stack, "berth/provisioner/") {
			count++
		}
	}
	return count
}
