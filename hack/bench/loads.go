package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// loadsCommand makes this program measure the loads of loads_table.go.
const loadsCommand = "loads"

// The modes that a load is run in.
const (
	modeAssist   = "assist"
	modeCluster  = "cluster"  // --binding=cluster
	modeBaseline = "baseline" // assist, with the binary that BASELINE names
)

// loadsConfig is what to measure.
type loadsConfig struct {
	loads    []load
	modes    []string // of modeAssist and modeCluster
	rounds   int
	berth    string
	baseline string
	json     string
	dir      string
	timeout  time.Duration
}

// loadsEnvironment names the variable that sets a flag.
var loadsEnvironment = map[string]string{
	"loads":         "LOADS",
	"modes":         "MODES",
	"rounds":        "ROUNDS",
	"berth":         "BERTH",
	"baseline":      "BASELINE",
	"json":          "BENCH_JSON",
	"dir":           "BENCH_DIR",
	"bound-timeout": "BOUND_TIMEOUT",
}

// parseLoadsConfig reads the flags and, for those not given, the environment.
func parseLoadsConfig(args []string, lookup func(string) (string, bool), usage io.Writer) (loadsConfig, error) {
	var c loadsConfig
	var names, modes string
	f := flag.NewFlagSet("bench "+loadsCommand, flag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&names, "loads", "", "loads to run, by name, comma-separated; all but the small ones of CI when not given")
	f.StringVar(&modes, "modes", modeAssist+","+modeCluster, "modes to run them in, comma-separated")
	f.IntVar(&c.rounds, "rounds", 3, "how often to run a load in modes that are compared, in turn; others are run once")
	f.StringVar(&c.berth, "berth", "", "the berth binary to measure; built when not given")
	f.StringVar(&c.baseline, "baseline", "", "a second berth binary, such as that of the commit before, which takes turns with the first")
	f.StringVar(&c.json, "json", "", "file to write the results to as JSON")
	f.StringVar(&c.dir, "dir", "", "folder for state and logs, kept afterwards; a temporary one when not given")
	f.DurationVar(&c.timeout, "bound-timeout", 10*time.Minute, "how long the claims of a run may take to become Bound, after the last was due")
	f.Usage = func() {
		describeFlags(usage, f, loadsEnvironment)
		fmt.Fprintln(usage, "Loads:")
		for _, l := range allLoads() {
			fmt.Fprintf(usage, "  %s\n\t%s\n", l.name, l.what)
		}
	}
	if err := f.Parse(args); err != nil {
		return loadsConfig{}, err
	}
	if err := applyEnvironment(f, loadsEnvironment, lookup); err != nil {
		return loadsConfig{}, err
	}
	if f.NArg() > 0 {
		return loadsConfig{}, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if c.rounds < 1 || c.timeout <= 0 {
		return loadsConfig{}, errors.New("need at least 1 as ROUNDS, and more than 0 as BOUND_TIMEOUT")
	}
	c.modes = strings.Split(modes, ",")
	for _, mode := range c.modes {
		if mode != modeAssist && mode != modeCluster {
			return loadsConfig{}, fmt.Errorf("MODES: no mode is called %q, there are %s and %s", mode, modeAssist, modeCluster)
		}
	}
	var err error
	c.loads, err = selectLoads(names)
	return c, err
}

// selectLoads returns the loads of these names, in the order given.
func selectLoads(names string) ([]load, error) {
	all := allLoads()
	if names == "" {
		return slices.DeleteFunc(all, func(l load) bool { return l.small }), nil
	}
	var selected []load
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(l load) bool { return l.name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, l := range all {
				known[i] = l.name
			}
			return nil, fmt.Errorf("LOADS: no load is called %q, there are %s", name, strings.Join(known, ", "))
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}

// modesOf returns the modes that a load is run in.
func (c loadsConfig) modesOf(l load) []string {
	var modes []string
	if slices.Contains(c.modes, modeAssist) {
		modes = append(modes, modeAssist)
		if c.baseline != "" {
			modes = append(modes, modeBaseline)
		}
	}
	if slices.Contains(c.modes, modeCluster) && !l.assistOnly {
		modes = append(modes, modeCluster)
	}
	return modes
}

// order returns the runs of a load. Modes that are compared take turns for all
// rounds; the others are run once.
func (c loadsConfig) order(l load) []step {
	modes := c.modesOf(l)
	often := map[string]bool{
		modeAssist:   c.baseline != "" || l.compared && slices.Contains(modes, modeCluster),
		modeBaseline: true,
		modeCluster:  l.compared && slices.Contains(modes, modeAssist),
	}
	return slices.DeleteFunc(runOrder(modes, c.rounds), func(s step) bool { return s.round > 1 && !often[s.name] })
}

// runLoads measures the loads and says which of them break what Berth promises.
func runLoads(ctx context.Context, c loadsConfig, out, notes io.Writer) (err error) {
	dir, err := workDir(c.dir)
	if err != nil {
		return err
	}
	if c.dir == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	binaries := map[string]string{}
	if binaries[modeAssist], err = berthBinary(ctx, c.berth, dir); err != nil {
		return err
	}
	binaries[modeCluster] = binaries[modeAssist]
	if binaries[modeBaseline], err = filepath.Abs(c.baseline); err != nil {
		return err
	}
	stage := &loadStage{config: c, binaries: binaries, dir: dir, notes: notes}
	report := &loadsReport{}
	for _, l := range c.loads {
		var runs []loadRun
		for _, s := range c.order(l) {
			run, err := stage.run(ctx, l, s)
			if err != nil {
				return fmt.Errorf("%s, %s, round %d: %w", l.name, s.name, s.round, err)
			}
			fmt.Fprintln(notes, run.line())
			runs = append(runs, run)
		}
		report.Kubernetes = stage.kubernetes
		report.Loads = append(report.Loads, summarize(l, runs))
	}
	if err := report.writeText(out); err != nil {
		return err
	}
	if c.json != "" {
		if err := writeJSON(c.json, report); err != nil {
			return err
		}
	}
	return report.verdict()
}
