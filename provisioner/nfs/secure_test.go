package nfs_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/test/nfsserver"
)

// unprivilegedEnv holds the parameters of the share that a child process, which
// may not bind low ports, asks for.
const unprivilegedEnv = "BERTH_TEST_UNPRIVILEGED"

func TestSecureExportIsServedFromALowPort(t *testing.T) {
	for _, way := range []string{"3", "4.0", "4.1"} {
		t.Run(way, func(t *testing.T) {
			b := newBench(t, way, nfsserver.Export{Secure: true})
			b.provision(b.ask("data"))
			b.wantVolumes("ns-data-pvc-data")
		})
	}
}

func TestSecureExportIsExplainedToWhoMayNotBindLowPorts(t *testing.T) {
	for _, way := range []string{"3", "4.0", "4.1"} {
		t.Run(way, func(t *testing.T) {
			b := newBench(t, way, nfsserver.Export{Secure: true})
			out := runUnprivileged(t, b.parameters)
			for _, word := range []string{"share ", "export it with the option insecure", "CAP_NET_BIND_SERVICE"} {
				if !strings.Contains(out, word) {
					t.Errorf("%q does not say %q", out, word)
				}
			}
			wantNames(t, b.base)
		})
	}
}

// runUnprivileged returns the error with which Provision fails in a process
// that lacks CAP_NET_BIND_SERVICE.
func runUnprivileged(t *testing.T, parameters []string) string {
	t.Helper()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result)
	go func() {
		// The thread, which is never unlocked, ends with the goroutine; what it
		// starts has its bounding set.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_BIND_SERVICE, 0, 0, 0); err != nil {
			done <- result{err: err}
			return
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestChildWithoutLowPorts$")
		cmd.Env = append(os.Environ(), unprivilegedEnv+"="+strings.Join(parameters, " "))
		out, err := cmd.CombinedOutput()
		done <- result{out, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("%v: %s", r.err, r.out)
	}
	return string(r.out)
}

// TestChildWithoutLowPorts is the child of runUnprivileged, and nothing by
// itself.
func TestChildWithoutLowPorts(t *testing.T) {
	parameters, ok := os.LookupEnv(unprivilegedEnv)
	if !ok {
		return
	}
	driver, err := nfs.New(nfs.Options{Log: logr.Discard()})
	must(t, err)
	defer driver.Close()
	if _, _, err = driver.Provision(t.Context(), askFor("data", strings.Fields(parameters)...)); err == nil {
		t.Fatal("a secure export served a process without low ports")
	}
	if _, err := os.Stdout.WriteString(err.Error()); err != nil {
		t.Fatal(err)
	}
}
