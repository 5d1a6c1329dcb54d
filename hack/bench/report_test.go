package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sampleReport() *report {
	return &report{
		Environment: environmentReport{CPUs: 2},
		Runs: []runResult{
			{Name: runBerth, Round: 1, Claims: 100, Bound: 100, ClaimsPerSecond: 50, ElapsedSeconds: 2, ConflictWarnings: 3},
			{Name: runBerth, Round: 2, Claims: 100, Bound: 100, ClaimsPerSecond: 40, ElapsedSeconds: 2.5},
			{Name: runBerth, Round: 3, Claims: 100, Bound: 100, ClaimsPerSecond: 20, ElapsedSeconds: 5},
			{Name: runLibrary, Round: 1, Claims: 50, Bound: 50, ClaimsPerSecond: 4, ElapsedSeconds: 12.5},
			{Name: runBare, Round: 1, Claims: 100, Bound: 100, ClaimsPerSecond: 100, ElapsedSeconds: 1,
				CPUSeconds: map[string]float64{"apiserver": 1, others: 0.5}},
		},
	}
}

func text(t *testing.T, r *report, paced bool) string {
	t.Helper()
	var out strings.Builder
	if err := r.writeText(&out, paced); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestRatiosAreOfMedians(t *testing.T) {
	got := text(t, sampleReport(), false)
	for _, want := range []string{
		"a/c = 10.0 x",
		"a/d = 40 % (berth / bare)",
		"a/d = 50 % with berth's bind grace of 500ms", // 100 claims in 2.5 s less 0.5 s
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
}

func TestNoRatiosOfGivenRates(t *testing.T) {
	if got := text(t, sampleReport(), true); strings.Contains(got, "a/c") || strings.Contains(got, "a/d") {
		t.Errorf("compares the speed of claims that came at a given rate:\n%s", got)
	}
}

func TestNoRatioOfARunThatWasNotMade(t *testing.T) {
	r := sampleReport()
	r.Runs = r.Runs[:3]
	if got := text(t, r, false); strings.Contains(got, "a/c") || strings.Contains(got, "a/d") {
		t.Errorf("compares with nothing:\n%s", got)
	}
}

func TestBusyShareIsOfAllCPUs(t *testing.T) {
	for line := range strings.Lines(text(t, sampleReport(), false)) {
		if fields := strings.Fields(line); len(fields) == 9 && fields[0] == "bare/1" {
			if want := "75"; fields[7] != want {
				t.Errorf("busy is %s %%, want %s: %s", fields[7], want, line)
			}
			return
		}
	}
	t.Error("no line about the CPU time of bare")
}

func TestCountsTextGreatestFirst(t *testing.T) {
	if got, want := countsText(map[string]int{"b": 2, "a": 2, "c": 9}), "9 c, 2 a, 2 b"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := countsText(nil); got != "none" {
		t.Errorf("got %q of nothing", got)
	}
}

func TestJSONHasTheFieldsOthersRead(t *testing.T) {
	r := &report{Runs: []runResult{{Name: runBerth, Requests: newRequestCounts().perClaim(1)}}, Single: &singleResult{N: 50}}
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := writeJSON(path, r); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Runs   []map[string]any `json:"runs"`
		Single map[string]any   `json:"single"`
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{
		"name", "claims", "bound", "claims_per_second", "p50_ms", "p90_ms", "p99_ms", "requests_per_claim",
		"events_per_claim", "claim_lost", "conflict_warnings", "peak_rss_bytes",
	} {
		if _, ok := got.Runs[0][field]; !ok {
			t.Errorf("a run lacks %q", field)
		}
	}
	want := map[string]any{"create": 0., "patch": 0., "update": 0., "get": 0., "list": 0., "delete": 0.}
	if diff := cmp.Diff(want, got.Runs[0]["requests_per_claim"]); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	for _, field := range []string{"n", "p50_ms", "p99_ms"} {
		if _, ok := got.Single[field]; !ok {
			t.Errorf("single lacks %q", field)
		}
	}
}
