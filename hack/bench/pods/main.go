//go:build linux

// Command pods measures how long pods with claims take to run and to go, beside
// the same pods without: on a cluster with two real kubelets that it starts, with
// Berth deployed from config/default. "go run ./hack/bench/pods -help" lists the
// settings, each of which can be given as an environment variable too.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/berth-storage/berth/test/cluster"
	"github.com/berth-storage/berth/test/controlplane"
)

func main() {
	c, err := parseConfig(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-pods:", err)
		os.Exit(1)
	}
	os.Exit(cluster.Main(func() int { return run(c) }, imageNames...))
}

var imageNames = []string{"berth", "pause", "busybox"}

// config is what to measure.
type config struct {
	pods   int
	rounds int
	json   string
}

// parseConfig reads the flags, whose defaults come from the environment.
func parseConfig(args []string) (config, error) {
	c := config{pods: 50, rounds: 2, json: os.Getenv("BENCH_JSON")}
	for name, value := range map[string]*int{"PODS": &c.pods, "ROUNDS": &c.rounds} {
		text, ok := os.LookupEnv(name)
		if !ok {
			continue
		}
		number, err := strconv.Atoi(text)
		if err != nil || number < 1 {
			return config{}, fmt.Errorf("%s=%q: want a number from 1 on", name, text)
		}
		*value = number
	}
	f := flag.NewFlagSet("bench-pods", flag.ContinueOnError)
	f.IntVar(&c.pods, "pods", c.pods, "pods at once (PODS)")
	f.IntVar(&c.rounds, "rounds", c.rounds, "how often to measure pods without and with claims, in turns (ROUNDS)")
	f.StringVar(&c.json, "json", c.json, "file to write the results to as JSON (BENCH_JSON)")
	return c, f.Parse(args)
}

func run(c config) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := measure(ctx, c)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-pods:", err)
		return 1
	}
	return 0
}

// measure starts a cluster and prints what it has measured on it.
func measure(ctx context.Context, c config) (err error) {
	cl, err := cluster.Start(ctx, cluster.Options{Images: imageNames, Output: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cl.Stop()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the watches end before the API server does
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return err
	}
	if err := cl.DeployBerth(ctx, filepath.Join(root, "config", "default")); err != nil {
		return err
	}
	b, err := newBench(ctx, cl)
	if err != nil {
		return err
	}
	// The first pods of a node are slow, whoever they are.
	if _, err := b.round(ctx, round{name: "warm-up", pods: 6, claims: true}); err != nil {
		return err
	}
	r := report{Pods: c.pods, Nodes: len(cl.Nodes())}
	for n := 1; n <= c.rounds; n++ {
		for _, claims := range []bool{false, true} {
			result, err := b.round(ctx, round{name: roundName(n, claims), pods: c.pods, claims: claims})
			if err != nil {
				return err
			}
			r.Rounds = append(r.Rounds, result)
		}
	}
	r.OtherPods = b.journal.strangers()
	if err := r.writeText(os.Stdout); err != nil {
		return err
	}
	if c.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(c.json, append(text, '\n'), 0o600)
}

func roundName(n int, claims bool) string {
	if claims {
		return fmt.Sprintf("claims-%d", n)
	}
	return fmt.Sprintf("plain-%d", n)
}
