package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what the benchmark gives, in the form of its JSON.
type report struct {
	Pods   int           `json:"pods"`
	Nodes  int           `json:"nodes"`
	Rounds []roundResult `json:"rounds"`
	// OtherPods are those that existed and were neither asked for nor Berth's
	// controller and agents.
	OtherPods []string `json:"other_pods"`
}

// roundResult is one round. Times are in seconds.
type roundResult struct {
	Name     string   `json:"name"`
	Claims   bool     `json:"claims"`
	BoundP50 float64  `json:"selected_node_to_bound_p50"`
	BoundMax float64  `json:"selected_node_to_bound_max"`
	Running  float64  `json:"all_running"`
	PodsGone float64  `json:"pods_gone"`
	AllGone  float64  `json:"all_gone"` // claims and volumes too
	Warnings []string `json:"warnings"`
}

// The targets.
const (
	targetP50   = 0.7 // seconds
	targetMax   = 1.5
	targetRatio = 1.3 // of the time without claims
)

func (r report) writeText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d pods at once on %d nodes\n\n", r.Pods, r.Nodes)
	fmt.Fprintln(t, "round\tnode selected -> Bound p50\tmax\tall Running\tpods gone\tclaims and volumes too\twarnings")
	for _, round := range r.Rounds {
		p50, maximum, gone := "", "", ""
		if round.Claims {
			p50, maximum, gone = format(round.BoundP50), format(round.BoundMax), format(round.AllGone)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n",
			round.Name, p50, maximum, format(round.Running), format(round.PodsGone), gone, len(round.Warnings))
	}
	fmt.Fprintln(t)
	for _, v := range r.verdicts() {
		fmt.Fprintln(t, v)
	}
	fmt.Fprintf(t, "pods besides these and Berth's own: %d %s\n", len(r.OtherPods), strings.Join(r.OtherPods, " "))
	for _, round := range r.Rounds {
		for _, warning := range round.Warnings {
			fmt.Fprintln(t, "warning:", warning)
		}
	}
	return t.Flush()
}

// verdicts compares the medians over all rounds with the targets.
func (r report) verdicts() []string {
	p50 := r.median(true, func(o roundResult) float64 { return o.BoundP50 })
	maximum := r.median(true, func(o roundResult) float64 { return o.BoundMax })
	running := ratio(r, func(o roundResult) float64 { return o.Running })
	gone := ratio(r, func(o roundResult) float64 { return o.PodsGone })
	return []string{
		verdict("node selected -> Bound, p50", format(p50), p50 < targetP50, fmt.Sprintf("< %.1f s", targetP50)),
		verdict("node selected -> Bound, max", format(maximum), maximum < targetMax, fmt.Sprintf("< %.1f s", targetMax)),
		verdict("all Running, times that without claims", fmt.Sprintf("%.2f", running), running <= targetRatio, fmt.Sprintf("<= %.1f", targetRatio)),
		verdict("pods gone, times that without claims", fmt.Sprintf("%.2f", gone), gone <= targetRatio, fmt.Sprintf("<= %.1f", targetRatio)),
	}
}

func verdict(what, value string, met bool, target string) string {
	word := "met"
	if !met {
		word = "MISSED"
	}
	return fmt.Sprintf("%s:\t%s\ttarget %s\t%s", what, value, target, word)
}

// ratio is the median with claims over that without.
func ratio(r report, value func(roundResult) float64) float64 {
	return r.median(true, value) / r.median(false, value)
}

func (r report) median(claims bool, value func(roundResult) float64) float64 {
	var values []float64
	for _, round := range r.Rounds {
		if round.Claims == claims {
			values = append(values, value(round))
		}
	}
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// percentile returns the smallest of sorted that at least p percent of it do
// not exceed; 0 of nothing.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

func format(seconds float64) string { return fmt.Sprintf("%.2f s", seconds) }
