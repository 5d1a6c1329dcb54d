package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func parseLoads(env map[string]string) (loadsConfig, error) {
	return parseLoadsConfig(nil, func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}, io.Discard)
}

func namesOf(loads []load) []string {
	var names []string
	for _, l := range loads {
		names = append(names, l.name)
	}
	return names
}

func TestLoadsAreChosenByName(t *testing.T) {
	c, err := parseLoads(nil)
	if err != nil {
		t.Fatal(err)
	}
	if names := namesOf(c.loads); !slices.Contains(names, "foreign-20000") || slices.Contains(names, "deletions-100") {
		t.Errorf("loads without a choice: %v, want all but the small ones", names)
	}
	c, err = parseLoads(map[string]string{"LOADS": "released-100,deletions-100", "MODES": "assist", "ROUNDS": "5"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"released-100", "deletions-100"}, namesOf(c.loads)); diff != "" {
		t.Errorf("loads chosen (-want +got):\n%s", diff)
	}
	for variable, value := range map[string]string{"LOADS": "burst-600,none", "MODES": "fast", "ROUNDS": "0", "BOUND_TIMEOUT": "0s"} {
		if _, err := parseLoads(map[string]string{variable: value}); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%s=%s: error %v does not name the variable", variable, value, err)
		}
	}
}

func TestLoadNamesAreUnique(t *testing.T) {
	names := namesOf(allLoads())
	if unique := slices.Compact(slices.Sorted(slices.Values(names))); len(unique) != len(names) {
		t.Errorf("loads %v", names)
	}
}

func TestEveryFlagOfLoadsHasAVariable(t *testing.T) {
	var usage strings.Builder
	_, _ = parseLoadsConfig([]string{"-help"}, func(string) (string, bool) { return "", false }, &usage)
	if strings.Contains(usage.String(), "()") {
		t.Errorf("a flag has no variable:\n%s", usage.String())
	}
	for _, variable := range loadsEnvironment {
		if !strings.Contains(usage.String(), "("+variable+")") {
			t.Errorf("%s sets no flag", variable)
		}
	}
}

func TestModesThatAreComparedTakeTurns(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		load load
		want []step
	}{
		"compared": {
			load: load{compared: true},
			want: []step{{modeAssist, 1}, {modeCluster, 1}, {modeCluster, 2}, {modeAssist, 2}},
		},
		"not compared": {want: []step{{modeAssist, 1}, {modeCluster, 1}}},
		"one mode alone": {
			env:  map[string]string{"MODES": modeAssist},
			load: load{compared: true},
			want: []step{{modeAssist, 1}},
		},
		"with a baseline": {
			env:  map[string]string{"BASELINE": "/old"},
			want: []step{{modeAssist, 1}, {modeBaseline, 1}, {modeCluster, 1}, {modeBaseline, 2}, {modeAssist, 2}},
		},
		"of no use with --binding=cluster": {load: load{assistOnly: true}, want: []step{{modeAssist, 1}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"ROUNDS": "2"}
			for variable, value := range tt.env {
				env[variable] = value
			}
			c, err := parseLoads(env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, c.order(tt.load), cmp.AllowUnexported(step{})); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFewAtATime(t *testing.T) {
	if got := every(3 * time.Second).due(2); got.Round(time.Millisecond) != 6*time.Second {
		t.Errorf("the third claim is due after %s", got)
	}
}

// runOf is a run whose claims took the given milliseconds.
func runOf(mode string, round int, change func(*loadRun), ms ...int) loadRun {
	r := loadRun{Mode: mode, Round: round, observed: observed{Claims: len(ms), Bound: len(ms)}}
	for _, m := range ms {
		r.latencies = append(r.latencies, time.Duration(m)*time.Millisecond)
	}
	slices.Sort(r.latencies)
	if change != nil {
		change(&r)
	}
	return r
}

func TestFiguresAreOverAllRounds(t *testing.T) {
	got := summarize(load{name: "x"}, []loadRun{
		runOf(modeAssist, 1, func(r *loadRun) { r.Lost, r.LostClaims, r.LostEvents, r.Repairs, r.Backlog = 5, 1, 3, 4, 10 }, 100, 200),
		runOf(modeCluster, 1, nil, 1000),
		runOf(modeBaseline, 1, func(r *loadRun) { r.Conflicts = 7 }, 50, 100),
		runOf(modeBaseline, 2, nil, 400, 500),
		runOf(modeAssist, 2, func(r *loadRun) { r.Backlog, r.Bound = 7, 1 }, 300, 400),
	})
	got.Runs, got.Broken, got.modes = nil, nil, nil
	want := loadResult{
		Name:       "x",
		figures:    figures{Rounds: 2, Claims: 4, Bound: 3, Lost: 5, LostClaims: 1, LostEvents: 3, Repairs: 4, Backlog: 10, P50: 200, P99: 400, Max: 400},
		ClusterP50: 1000, ClusterP99: 1000, ClusterMax: 1000,
		Baseline: &figures{Rounds: 2, Claims: 4, Bound: 4, Conflicts: 7, P50: 100, P99: 500, Max: 500},
		// Round 1: 100 by 50 and 200 by 100. Round 2: 300 by 400 and 400 by 500.
		RatioP50: (2 + 0.75) / 2, RatioP99: (2 + 0.8) / 2,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(loadResult{}, figures{})); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestBrokenPromises(t *testing.T) {
	compared := load{compared: true}
	tests := map[string]struct {
		load load
		runs []loadRun
		want string // in the only complaint; "" for none
	}{
		"all well": {compared, []loadRun{runOf(modeAssist, 1, nil, 10), runOf(modeCluster, 1, nil, 5)}, ""},
		"lost": {compared, []loadRun{runOf(modeAssist, 1, func(r *loadRun) { r.Lost, r.LostClaims, r.LostEvents = 3, 1, 2 }, 10)},
			"1 claims were Lost, 3 times altogether, with 2 warnings"},
		"lost with the baseline only": {load{}, []loadRun{runOf(modeAssist, 1, nil, 10), runOf(modeBaseline, 1, func(r *loadRun) { r.Lost = 3 }, 10)}, ""},
		"conflict":                    {load{}, []loadRun{runOf(modeAssist, 1, func(r *loadRun) { r.Conflicts = 2 }, 10)}, "2 warnings of a conflict"},
		"conflict, excused": {load{conflictsExcused: true}, []loadRun{
			runOf(modeAssist, 1, func(r *loadRun) { r.Conflicts = 2 }, 10)}, ""},
		"not Bound":              {load{}, []loadRun{runOf(modeAssist, 1, func(r *loadRun) { r.Bound = 1 }, 10, 20)}, "1 of 2 claims are not Bound"},
		"the load was not there": {load{}, []loadRun{runOf(modeAssist, 1, func(r *loadRun) { r.Missing = "no backlog" }, 10)}, "no backlog"},
		"nor for the cluster": {compared, []loadRun{runOf(modeAssist, 1, nil, 10),
			runOf(modeCluster, 1, func(r *loadRun) { r.Missing = "no backlog" }, 10)}, "cluster: the load was not there"},
		"the cluster bound nothing": {compared, []loadRun{runOf(modeAssist, 1, nil, 10),
			runOf(modeCluster, 1, func(r *loadRun) { r.Bound = 0 }, 10)}, "nothing to compare with"},
		"as slow as allowed":          {compared, []loadRun{runOf(modeAssist, 1, nil, 14_000), runOf(modeCluster, 1, nil, 10_000)}, ""},
		"slowest over what's allowed": {compared, []loadRun{runOf(modeAssist, 1, nil, 1, 1, 14_001), runOf(modeCluster, 1, nil, 10_000)}, "max 14.00 s"},
		"not compared":                {load{}, []loadRun{runOf(modeAssist, 1, nil, 60_000), runOf(modeCluster, 1, nil, 10)}, ""},
		"slower than without": {load{likeWithout: true}, []loadRun{runOf(modeAssist, 1, func(r *loadRun) {
			without := runOf(modeAssist, 1, nil, 1000, 1000)
			r.Without = &without.observed
		}, 1251, 1300)}, "p50 1.25 s, without the burden 1.00 s"},
		"slower than the baseline":      {load{}, []loadRun{runOf(modeAssist, 1, nil, 116, 116), runOf(modeBaseline, 1, nil, 80, 116)}, "p50 is 1.45 times"},
		"slower by what nobody can see": {load{}, []loadRun{runOf(modeAssist, 1, nil, 30), runOf(modeBaseline, 1, nil, 14)}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := summarize(tt.load, tt.runs)
			switch {
			case tt.want == "" && len(r.Broken) > 0:
				t.Errorf("broken: %q, want nothing", r.Broken)
			case tt.want != "" && (len(r.Broken) != 1 || !strings.Contains(r.Broken[0], tt.want)):
				t.Errorf("broken: %q, want only %q", r.Broken, tt.want)
			}
			report := loadsReport{Loads: []loadResult{r}}
			if err := report.verdict(); (err != nil) != (tt.want != "") {
				t.Errorf("verdict: %v", err)
			}
		})
	}
}

func TestWatchesBecomeFigures(t *testing.T) {
	bound, start := newBoundWatch(), time.Now()
	bound.times["quick"], bound.phases["quick"] = start.Add(-time.Millisecond), corev1.ClaimBound
	bound.times["lost"], bound.phases["lost"], bound.lost["lost"] = start.Add(2*time.Second), corev1.ClaimLost, 4
	bound.phases["waits"] = corev1.ClaimPending
	bound.times["somebody-else's"], bound.lost["somebody-else's"] = start, 1
	made := map[string]time.Time{"quick": start, "lost": start, "waits": start}
	got := observe(bound, &eventCounts{lost: 3, conflicts: 1}, made)
	want := observed{
		Claims: 3, Bound: 1, Lost: 4, LostClaims: 1, LostEvents: 3, Conflicts: 1,
		LatenciesMS: []float64{0, 2000}, latencies: []time.Duration{0, 2 * time.Second},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(observed{})); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

func TestCounterIsReadFromMetrics(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# TYPE a_total counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 4\n")
	}))
	t.Cleanup(server.Close)
	if got, err := readCounter(t.Context(), server.URL, "a_total"); err != nil || got != 7 {
		t.Errorf("readCounter = %d, %v, want 7", got, err)
	}
	if got, err := readCounter(t.Context(), server.URL, "b_total"); err == nil {
		t.Errorf("a counter that is not there is %d", got)
	}
}

func TestReportOfLoads(t *testing.T) {
	r := loadsReport{Kubernetes: "v1.2.3", Loads: []loadResult{summarize(load{name: "few", compared: true}, []loadRun{
		runOf(modeAssist, 1, func(r *loadRun) { r.Lost, r.LostClaims = 3, 1 }, 10), runOf(modeCluster, 1, nil, 20),
	})}}
	var text strings.Builder
	if err := r.writeText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"v1.2.3", "few", "assist", "cluster", "BROKEN: few: 1 claims were Lost"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
	path := filepath.Join(t.TempDir(), "loads.json")
	if err := writeJSON(path, r); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Kubernetes string
		Loads      []map[string]any
	}
	if err := json.Unmarshal(written, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"name": "few", "claims": 1.0, "bound": 1.0, "claim_lost": 3.0, "conflict_warnings": 0.0, "repairs": 0.0,
		"p50_ms": 10.0, "p99_ms": 10.0, "max_ms": 10.0,
		"cluster_p50_ms": 20.0, "cluster_p99_ms": 20.0, "cluster_max_ms": 20.0,
	}
	for field := range got.Loads[0] {
		if _, ok := want[field]; !ok {
			delete(got.Loads[0], field)
		}
	}
	if diff := cmp.Diff(want, got.Loads[0]); diff != "" || got.Kubernetes != "v1.2.3" {
		t.Errorf("JSON of %s (-want +got):\n%s", got.Kubernetes, diff)
	}
}
