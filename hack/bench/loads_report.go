package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// loadsReport is what the loads give, in the form of its JSON.
type loadsReport struct {
	Kubernetes string       `json:"kubernetes"`
	Loads      []loadResult `json:"loads"`
}

// loadResult is what a load gave over all rounds.
type loadResult struct {
	Name string `json:"name"`
	figures

	// Figures of the same binary with --binding=cluster.
	ClusterP50 float64 `json:"cluster_p50_ms,omitempty"`
	ClusterP99 float64 `json:"cluster_p99_ms,omitempty"`
	ClusterMax float64 `json:"cluster_max_ms,omitempty"`
	// WithoutP50 and WithoutMax are without the burden.
	WithoutP50 float64 `json:"without_p50_ms,omitempty"`
	WithoutMax float64 `json:"without_max_ms,omitempty"`
	// Baseline is what the second binary gave, RatioP50 and RatioP99 the medians
	// over the rounds of what the first took in relation to it.
	Baseline *figures `json:"baseline,omitempty"`
	RatioP50 float64  `json:"ratio_p50,omitempty"`
	RatioP99 float64  `json:"ratio_p99,omitempty"`

	// Broken are the promises that the load shows broken.
	Broken []string  `json:"broken"`
	Runs   []loadRun `json:"runs"`

	modes map[string]figures
}

// figures are the sums over some runs, and the percentiles of their claims
// together.
type figures struct {
	Rounds     int     `json:"rounds"`
	Claims     int     `json:"claims"`
	Bound      int     `json:"bound"`
	Lost       int     `json:"claim_lost"`
	LostClaims int     `json:"claims_lost"`
	LostEvents int     `json:"claim_lost_events"`
	Conflicts  int     `json:"conflict_warnings"`
	Repairs    int     `json:"repairs"`
	Backlog    int     `json:"backlog"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	Max        float64 `json:"max_ms"`
}

// figuresOf sums up the runs of a mode. Their number is 0 when there are none.
func figuresOf(runs []loadRun, mode string) figures {
	var f figures
	var latencies []time.Duration
	for _, r := range runs {
		if r.Mode != mode {
			continue
		}
		f.Rounds++
		f.Claims += r.Claims
		f.Bound += r.Bound
		f.Lost += r.Lost
		f.LostClaims += r.LostClaims
		f.LostEvents += r.LostEvents
		f.Conflicts += r.Conflicts
		f.Repairs += r.Repairs
		f.Backlog = max(f.Backlog, r.Backlog)
		latencies = append(latencies, r.latencies...)
	}
	f.P50, f.P99, f.Max = spread(latencies)
	return f
}

// spread returns the middle, the 99th percentile and the greatest of latencies, in
// milliseconds.
func spread(latencies []time.Duration) (p50, p99, most float64) {
	sorted := slices.Sorted(slices.Values(latencies))
	return milliseconds(percentile(sorted, 50)), milliseconds(percentile(sorted, 99)), milliseconds(percentile(sorted, 100))
}

// summarize makes a result of the runs of a load.
func summarize(l load, runs []loadRun) loadResult {
	r := loadResult{Name: l.name, figures: figuresOf(runs, modeAssist), Runs: runs, modes: map[string]figures{}}
	for _, mode := range []string{modeAssist, modeBaseline, modeCluster} {
		if f := figuresOf(runs, mode); f.Rounds > 0 {
			r.modes[mode] = f
		}
	}
	if f, ok := r.modes[modeCluster]; ok {
		r.ClusterP50, r.ClusterP99, r.ClusterMax = f.P50, f.P99, f.Max
	}
	if f, ok := r.modes[modeBaseline]; ok {
		r.Baseline = &f
		r.RatioP50, r.RatioP99 = ratio(runs, 50), ratio(runs, 99)
	}
	var without []time.Duration
	for _, run := range runs {
		if run.Without != nil && run.Mode == modeAssist {
			without = append(without, run.Without.latencies...)
		}
	}
	r.WithoutP50, _, r.WithoutMax = spread(without)
	r.Broken = broken(l, r)
	return r
}

// ratio returns the median over the rounds of a percentile with the binary measured,
// by that with the baseline in the same round.
func ratio(runs []loadRun, p float64) float64 {
	of := func(mode string, round int) float64 {
		for _, r := range runs {
			if r.Mode == mode && r.Round == round {
				return milliseconds(percentile(r.latencies, p))
			}
		}
		return 0
	}
	var ratios []float64
	for _, r := range runs {
		if base := of(modeBaseline, r.Round); r.Mode == modeAssist && base > 0 {
			ratios = append(ratios, of(modeAssist, r.Round)/base)
		}
	}
	return median(ratios)
}

// limit is how much slower something may be than what it is compared with.
type limit struct {
	factor float64
	more   time.Duration
}

func (l limit) exceeded(ms, comparedMS float64) bool {
	return ms > l.factor*comparedMS+milliseconds(l.more)
}

var (
	// overCluster is for loads that hold kube-controller-manager up.
	overCluster = limit{1.2, 2 * time.Second}
	// overWithout is for a burden that must make no difference, overWithoutMax
	// for the slowest of its few claims.
	overWithout    = limit{1.15, 100 * time.Millisecond}
	overWithoutMax = limit{1.2, time.Second}
	// overBaseline leaves out differences that no user could see.
	overBaseline = limit{1.15, 25 * time.Millisecond}
)

// broken returns the promises that a load's figures show broken, and what keeps them
// from showing anything.
func broken(l load, r loadResult) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, run := range r.Runs {
		if run.Missing != "" {
			say("round %d, %s: the load was not there: %s", run.Round, run.Mode, run.Missing)
		}
	}
	if c, ok := r.modes[modeCluster]; ok && c.Bound < c.Claims {
		say("%d of %d claims are not Bound by kube-controller-manager alone, so there is nothing to compare with", c.Claims-c.Bound, c.Claims)
	}
	if r.Rounds == 0 {
		return out
	}
	if r.Bound < r.Claims {
		say("%d of %d claims are not Bound", r.Claims-r.Bound, r.Claims)
	}
	if r.Lost > 0 || r.LostEvents > 0 {
		say("%d claims were Lost, %d times altogether, with %d warnings", r.LostClaims, r.Lost, r.LostEvents)
	}
	if r.Conflicts > 0 && !l.conflictsExcused {
		say("%d warnings of a conflict", r.Conflicts)
	}
	compare := func(limit limit, what string, ms float64, with string, comparedMS float64) {
		if limit.exceeded(ms, comparedMS) {
			say("%s %.2f s, %s %.2f s: over %.0f %% + %s more", what, ms/1000, with, comparedMS/1000, 100*(limit.factor-1), limit.more)
		}
	}
	if l.compared && r.ClusterMax > 0 {
		compare(overCluster, "p50", r.P50, "with --binding=cluster", r.ClusterP50)
		compare(overCluster, "max", r.Max, "with --binding=cluster", r.ClusterMax)
	}
	if l.likeWithout {
		compare(overWithout, "p50", r.P50, "without the burden", r.WithoutP50)
		compare(overWithoutMax, "max", r.Max, "without the burden", r.WithoutMax)
	}
	if b := r.Baseline; b != nil && !l.compared {
		for _, x := range []struct {
			what                 string
			ratio, ms, baselineM float64
		}{{"p50", r.RatioP50, r.P50, b.P50}, {"p99", r.RatioP99, r.P99, b.P99}} {
			if x.ratio > overBaseline.factor && x.ms > x.baselineM+milliseconds(overBaseline.more) {
				say("%s is %.2f times the baseline's: %.0f ms, %.0f ms", x.what, x.ratio, x.ms, x.baselineM)
			}
		}
	}
	return out
}

// verdict returns an error when a promise is broken.
func (r *loadsReport) verdict() error {
	var names []string
	for _, l := range r.Loads {
		if len(l.Broken) > 0 {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errBroken, strings.Join(names, ", "))
}

var errBroken = errors.New("loads that break what Berth promises")

func (r *loadsReport) writeText(out io.Writer) error {
	t := &table{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	t.line("Kubernetes %s, kube-controller-manager with its defaults, etcd without fsync, %d CPUs for everything, %s",
		r.Kubernetes, runtime.NumCPU(), runtime.Version())
	t.line("Lost: how often a claim became Lost; events: warnings about it. backlog: most volumes in kube-controller-manager's queue meanwhile.")
	t.row("load", "run", "rounds", "claims", "Bound", "Lost", "events", "conflicts", "repairs", "backlog", "p50 ms", "p99 ms", "max ms")
	for _, l := range r.Loads {
		for _, mode := range []string{modeAssist, modeBaseline, modeCluster} {
			if f, ok := l.modes[mode]; ok {
				t.row(l.Name, mode, f.Rounds, f.Claims, f.Bound, f.Lost, f.LostEvents, f.Conflicts, f.Repairs, f.Backlog,
					fixed(0, f.P50), fixed(0, f.P99), fixed(0, f.Max))
			}
		}
		if l.WithoutMax > 0 {
			t.row(l.Name, "without", "", "", "", "", "", "", "", "", fixed(0, l.WithoutP50), "", fixed(0, l.WithoutMax))
		}
	}
	t.line("")
	for _, l := range r.Loads {
		if l.Baseline != nil {
			t.line("%s: p50 %.2f, p99 %.2f times the baseline's (medians of the rounds' ratios)", l.Name, l.RatioP50, l.RatioP99)
		}
		for _, promise := range l.Broken {
			t.line("BROKEN: %s: %s", l.Name, promise)
		}
	}
	return cmp.Or(t.err, t.w.Flush())
}
