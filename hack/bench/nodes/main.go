// Command nodes measures what a controller with agents on many nodes needs: its
// memory, its watches, and the time to make a volume on every node.
//
// Real are berth controller, the API server, etcd and kube-controller-manager, the
// Node objects and EndpointSlices, and for every node a TCP connection with
// mutual TLS, by certificates that the controller issues. Made up are the agents
// behind it: one process answers for all nodes, from memory, without any disk. No
// kubelet and no scheduler runs: claims come with their node selected.
//
// All of it runs in a network of its own, in which the addresses of all nodes are
// loopback's. That needs root, or a kernel that lets users make namespaces.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/berth-storage/berth/test/controlplane"
)

// insideVariable says that the process is in the network, and names the binary.
const insideVariable = "BERTH_BENCH_NODES_BINARY"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context) error {
	sizes := flag.String("nodes", "50,5000", "how many nodes, comma-separated: one run each")
	flag.Parse()
	if os.Getenv(insideVariable) == "" {
		return isolate(ctx)
	}
	if err := makeNetwork(); err != nil {
		return fmt.Errorf("make a network: %w", err)
	}
	var all []figures
	for text := range strings.SplitSeq(*sizes, ",") {
		size, err := strconv.Atoi(text)
		if err != nil || size < 1 || size > maxNodes {
			return fmt.Errorf("-nodes=%s: want numbers from 1 to %d", *sizes, maxNodes)
		}
		f, err := run(ctx, os.Getenv(insideVariable), size)
		if err != nil {
			return fmt.Errorf("%d nodes: %w", size, err)
		}
		all = append(all, f)
	}
	return report(all)
}

// isolate builds berth, and runs this program again in a network of its own.
func isolate(ctx context.Context) error {
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "berth")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, ".") //nolint:gosec // the path is in the benchmark's own folder
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build berth: %w\n%s", err, output)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	inside := exec.CommandContext(ctx, self, os.Args[1:]...) //nolint:gosec // itself
	inside.Env = append(os.Environ(), insideVariable+"="+binary)
	inside.Stdout, inside.Stderr = os.Stdout, os.Stderr
	inside.Cancel = func() error { return inside.Process.Signal(syscall.SIGTERM) }
	inside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		inside.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		inside.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		inside.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return inside.Run()
}

// figures are what a run has shown.
type figures struct {
	nodes int
	// watches is what the controller adds to the API server's.
	watches int
	// synced and done are the controller's resident memory once its caches are
	// full, and with all claims bound; peak is the most it had.
	synced, done, peak int64
	// connections is how many agents it was connected to at the end.
	connections int
	// last is when the last claim was bound, and p50 and p99 how long claims took.
	last, p50, p99 time.Duration
	cpu            time.Duration
}

func report(all []figures) error {
	fmt.Printf("%s, %d CPUs for everything\n", runtime.Version(), runtime.NumCPU())
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "nodes\twatches\tRSS synced\tRSS at the end\tpeak RSS\tconnections\tall Bound\tclaims/s\tp50\tp99\tCPU\t")
	for _, f := range all {
		fmt.Fprintf(table, "%d\t%d\t%d MiB\t%d MiB\t%d MiB\t%d\t%.1f s\t%.0f\t%.2f s\t%.2f s\t%.1f s\t\n",
			f.nodes, f.watches, f.synced>>20, f.done>>20, f.peak>>20, f.connections,
			f.last.Seconds(), float64(f.nodes)/f.last.Seconds(), f.p50.Seconds(), f.p99.Seconds(), f.cpu.Seconds())
	}
	return table.Flush()
}
