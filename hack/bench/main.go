// Command bench measures how fast claims become Bound through Berth, beside
// the ways there are to compare it with, on one real control plane that it
// starts:
//
//	berth          berth controller as it ships
//	berth-cluster  the same with --binding=cluster: kube-controller-manager binds alone
//	library        the ProvisionController of sig-storage-lib-external-provisioner
//	               around the same driver
//	bare           a client that makes the four writes of a bind and nothing
//	               else: the limit
//
// Each runs as a process of its own, one after the other, with its own
// namespace, StorageClass and pool. The time to Bound is taken by one watch, the
// same for all. "bench loads" measures what users see of claims under loads that hold
// kube-controller-manager up. "go run ./hack/bench -help" lists the settings, each of which can
// be given as an environment variable too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/berth-storage/berth/test/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == childCommand {
		return runChild(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == loadsCommand {
		c, err := parseLoadsConfig(args[1:], os.LookupEnv, os.Stderr)
		if err != nil {
			return err
		}
		return runLoads(ctx, c, os.Stdout, os.Stderr)
	}
	c, err := parseConfig(args, os.LookupEnv, os.Stderr)
	if err != nil {
		return err
	}
	return measure(ctx, c, os.Stdout, os.Stderr)
}

// measure does everything that the configuration asks for and writes the report to out.
// Progress goes to notes.
func measure(ctx context.Context, c config, out, notes io.Writer) (err error) {
	dir, err := workDir(c.dir)
	if err != nil {
		return err
	}
	if c.dir == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	berth, err := berthBinary(ctx, c.berth, dir)
	if err != nil {
		return err
	}
	fleet, err := newFleet(berth)
	if err != nil {
		return err
	}
	cluster, err := startCluster(ctx, c, filepath.Join(dir, "cluster"), notes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.stop()) }()

	b := &bench{config: c, cluster: cluster, fleet: fleet, dir: dir, notes: notes}
	r := &report{Environment: cluster.describe(c)}
	order := runOrder(c.runs, c.rounds)
	b.note("order of the runs: %s", describeOrder(order))
	for _, step := range order {
		result, err := b.run(ctx, b.plan(step))
		if err != nil {
			return err
		}
		r.Runs = append(r.Runs, result)
	}
	if c.single > 0 {
		result, err := b.run(ctx, b.singlePlan())
		if err != nil {
			return err
		}
		r.Single = newSingle(result)
	}
	if err := r.writeText(out, c.rate > 0); err != nil {
		return err
	}
	if c.json == "" {
		return nil
	}
	return writeJSON(c.json, r)
}

// workDir returns the folder for everything a benchmark leaves behind: a new
// one unless dir names it.
func workDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "berth-bench-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o750)
}

// berthBinary returns the absolute path of the berth to measure, which it
// builds, as the Makefile does, when path is "".
func berthBinary(ctx context.Context, path, dir string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "berth")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, ".") //nolint:gosec // the path is in the benchmark's own folder
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build berth: %w\n%s", err, output)
	}
	return path, nil
}
