package main

import (
	"strings"
	"testing"
	"time"
)

func TestReportSaysWhichTargetsAreMissed(t *testing.T) {
	r := report{
		Pods:  50,
		Nodes: 2,
		Rounds: []roundResult{
			{Name: "plain-1", Running: 8, PodsGone: 4},
			{Name: "claims-1", Claims: true, BoundP50: 0.5, BoundMax: 2, Running: 10, PodsGone: 4, Warnings: []string{"a warning"}},
			{Name: "plain-2", Running: 10, PodsGone: 4},
			{Name: "claims-2", Claims: true, BoundP50: 0.6, BoundMax: 1.6, Running: 10, PodsGone: 8},
		},
		OtherPods: []string{"kube-system/helper"},
	}
	var out strings.Builder
	if err := r.writeText(&out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"Bound, p50: 0.55 s target < 0.7 s met",
		"Bound, max: 1.80 s target < 1.5 s MISSED",
		"all Running, times that without claims: 1.11 target <= 1.3 met",
		"pods gone, times that without claims: 1.50 target <= 1.3 MISSED",
		"own: 1 kube-system/helper",
		"warning: a warning",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}

func TestPercentileIsAValueThatWasSeen(t *testing.T) {
	values := []time.Duration{1, 2, 3, 4}
	for p, want := range map[float64]time.Duration{50: 2, 51: 3, 100: 4, 0: 1} {
		if got := percentile(values, p); got != want {
			t.Errorf("percentile %g = %d, want %d", p, got, want)
		}
	}
}
