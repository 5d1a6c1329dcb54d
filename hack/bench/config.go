package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// config is what to measure.
type config struct {
	berth string
	dir   string
	json  string

	claims        int
	libraryClaims int
	runs          []string
	rounds        int
	rate          float64
	single        int
	deletions     int
	kcmQPS        int
	// waitForConsumer makes the classes WaitForFirstConsumer.
	waitForConsumer bool
	timeout         time.Duration
}

// environment names the variable that sets a flag.
var environment = map[string]string{
	"berth":         "BERTH",
	"json":          "BENCH_JSON",
	"dir":           "BENCH_DIR",
	"n":             "N",
	"library-n":     "LIBRARY_N",
	"runs":          "RUNS",
	"rounds":        "ROUNDS",
	"rate":          "RATE",
	"single":        "SINGLE",
	"deletions":     "DELETIONS",
	"kcm-qps":       "KCM_QPS",
	"bound-timeout": "BOUND_TIMEOUT",

	"wait-for-consumer": "WAIT_FOR_CONSUMER",
}

// parseConfig reads the flags and, for those not given, the environment.
func parseConfig(args []string, lookup func(string) (string, bool), usage io.Writer) (config, error) {
	var c config
	var runs string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&c.berth, "berth", "", "the berth binary to measure; built when not given")
	f.StringVar(&c.json, "json", "", "file to write the results to as JSON")
	f.StringVar(&c.dir, "dir", "", "folder for state and logs, kept afterwards; a temporary one when not given")
	f.IntVar(&c.claims, "n", 600, "claims of a run")
	f.IntVar(&c.libraryClaims, "library-n", 300, "most claims of a run of the library, which is slow")
	f.StringVar(&runs, "runs", strings.Join(runNames, ","), "what to run, comma-separated")
	f.IntVar(&c.rounds, "rounds", 1, "how often to run each; every second round goes backwards")
	f.Float64Var(&c.rate, "rate", 0, "claims made per second; 0 for all at once")
	f.IntVar(&c.single, "single", 50, "claims to make one by one through berth at the end, on an idle cluster")
	f.IntVar(&c.deletions, "deletions", 0, "bound claims whose deletion begins together with each run")
	f.IntVar(&c.kcmQPS, "kcm-qps", 0, "kube-controller-manager's --kube-api-qps and --kube-api-burst; 0 for its defaults, which is what most clusters have")
	f.BoolVar(&c.waitForConsumer, "wait-for-consumer", false, "make the classes WaitForFirstConsumer, and count a claim as made when it gets its node; all claims are there before")
	f.DurationVar(&c.timeout, "bound-timeout", 0, "how long the claims of a run may take, after the last was due, to become Bound or to be deleted; 0 for five minutes and a second per claim")
	f.Usage = func() {
		describeFlags(usage, f, environment)
		fmt.Fprintf(usage, "bench %s measures other loads: bench %s -help\n", loadsCommand, loadsCommand)
	}
	if err := f.Parse(args); err != nil {
		return config{}, err
	}
	if err := applyEnvironment(f, environment, lookup); err != nil {
		return config{}, err
	}
	if f.NArg() > 0 {
		return config{}, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	c.runs = strings.Split(runs, ",")
	return c, c.validate()
}

// describeFlags writes the flags and the variables that set them.
func describeFlags(usage io.Writer, f *flag.FlagSet, variables map[string]string) {
	fmt.Fprintf(usage, "Usage of %s (environment variables in parentheses):\n", f.Name())
	f.VisitAll(func(o *flag.Flag) {
		fmt.Fprintf(usage, "  -%s (%s)\n\t%s [%s]\n", o.Name, variables[o.Name], o.Usage, o.DefValue)
	})
}

// applyEnvironment sets the flags not given from the variables of that name.
func applyEnvironment(f *flag.FlagSet, variables map[string]string, lookup func(string) (string, bool)) error {
	given := map[string]bool{}
	f.Visit(func(o *flag.Flag) { given[o.Name] = true })
	for name, variable := range variables {
		value, ok := lookup(variable)
		if !ok || value == "" || given[name] {
			continue
		}
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("%s=%s: %w", variable, value, err)
		}
	}
	return nil
}

func (c config) validate() error {
	for _, name := range c.runs {
		if !slices.Contains(runNames, name) {
			return fmt.Errorf("RUNS: no run is called %q, there are %s", name, strings.Join(runNames, ", "))
		}
	}
	switch {
	case c.claims < 1 || c.libraryClaims < 1 || c.rounds < 1:
		return errors.New("need at least 1 as N, LIBRARY_N and ROUNDS")
	case c.rate < 0 || c.single < 0 || c.deletions < 0 || c.kcmQPS < 0 || c.timeout < 0:
		return errors.New("need at least 0 as RATE, SINGLE, DELETIONS, KCM_QPS and BOUND_TIMEOUT")
	}
	return nil
}

// patience is how long n claims may take.
func (c config) patience(n int) time.Duration {
	if c.timeout > 0 {
		return c.timeout
	}
	return 5*time.Minute + time.Duration(n)*time.Second
}

// step is one run in the order of runs.
type step struct {
	name  string
	round int
}

// runOrder interleaves the runs, and turns every second round around, so that
// what drifts over time falls on all alike.
func runOrder(names []string, rounds int) []step {
	var order []step
	for round := 1; round <= rounds; round++ {
		turn := slices.Clone(names)
		if round%2 == 0 {
			slices.Reverse(turn)
		}
		for _, name := range turn {
			order = append(order, step{name, round})
		}
	}
	return order
}

func describeOrder(order []step) string {
	names := make([]string, len(order))
	for i, s := range order {
		names[i] = s.name
	}
	return strings.Join(names, ", ")
}
