package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/berth-storage/berth/controllers"
)

// report is what a benchmark gives, in the form of its JSON.
type report struct {
	Environment environmentReport `json:"environment"`
	Runs        []runResult       `json:"runs"`
	Single      *singleResult     `json:"single,omitempty"`
}

// environmentReport is what the numbers depend on.
type environmentReport struct {
	Kubernetes string  `json:"kubernetes"`
	Go         string  `json:"go"`
	CPUs       int     `json:"cpus"`
	KCMQPS     int     `json:"kcm_qps"`   // 0: kube-controller-manager's default
	Rate       float64 `json:"rate"`      // 0: all at once
	Deletions  int     `json:"deletions"` // at the same time
	// WaitForConsumer says that claims count from when they get their node.
	WaitForConsumer bool `json:"wait_for_consumer"`
}

// runResult is one run.
type runResult struct {
	Name            string  `json:"name"`
	Round           int     `json:"round"`
	Claims          int     `json:"claims"`
	Bound           int     `json:"bound"`
	ClaimsPerSecond float64 `json:"claims_per_second"`
	ElapsedSeconds  float64 `json:"elapsed_seconds"` // first create to last Bound
	CreateSeconds   float64 `json:"create_seconds"`
	DeleteSeconds   float64 `json:"delete_seconds"`
	P50             float64 `json:"p50_ms"`
	P90             float64 `json:"p90_ms"`
	P99             float64 `json:"p99_ms"`
	Max             float64 `json:"max_ms"`

	// Requests are those from the first create until the cluster is quiet.
	Requests         map[string]float64 `json:"requests_per_claim"`
	DeletionRequests map[string]float64 `json:"deletion_requests_per_claim"`
	// KCMRequests are those of kube-controller-manager's volume controller in
	// the first of these spans.
	KCMRequests      float64        `json:"kcm_requests_per_claim"`
	RequestsByKind   map[string]int `json:"requests_by_kind"`
	DeletionsByKind  map[string]int `json:"deletion_requests_by_kind"`
	RefusedRequests  map[string]int `json:"refused_requests"`
	EventsPerClaim   float64        `json:"events_per_claim"`
	EventsByReason   map[string]int `json:"events_by_reason"`
	ClaimLost        int            `json:"claim_lost"`
	ConflictWarnings int            `json:"conflict_warnings"`

	PeakRSS    int64              `json:"peak_rss_bytes"`
	CPUSeconds map[string]float64 `json:"cpu_seconds"` // first create to last Bound
}

// singleResult is the run of claims made one by one.
type singleResult struct {
	N                int     `json:"n"`
	P50              float64 `json:"p50_ms"`
	P99              float64 `json:"p99_ms"`
	Max              float64 `json:"max_ms"`
	BoundByBerth     int     `json:"bound_by_berth"`
	ClaimLost        int     `json:"claim_lost"`
	ConflictWarnings int     `json:"conflict_warnings"`
}

// claimStatusPatch is a bind's last write, so it tells who finished it.
const claimStatusPatch = "patch persistentvolumeclaims/status"

func newSingle(r runResult) *singleResult {
	return &singleResult{
		N: r.Claims, P50: r.P50, P99: r.P99, Max: r.Max,
		BoundByBerth: r.RequestsByKind[claimStatusPatch],
		ClaimLost:    r.ClaimLost, ConflictWarnings: r.ConflictWarnings,
	}
}

// evaluate makes a result of a measurement and the audit log.
func (b *bench) evaluate(p plan, m measurement) (runResult, error) {
	log := b.cluster.plane.AuditLogPath()
	own, err := countRequests(log, userOf(p.id), m.binding, m.deletion)
	if err != nil {
		return runResult{}, err
	}
	kcm, err := countRequests(log, kcmBinder, m.binding)
	if err != nil {
		return runResult{}, err
	}
	n := p.claims
	latencies := m.claims.latencies
	return runResult{
		Name:            p.name,
		Round:           p.round,
		Claims:          n,
		Bound:           len(latencies),
		ClaimsPerSecond: float64(n) / m.claims.elapsed().Seconds(),
		ElapsedSeconds:  m.claims.elapsed().Seconds(),
		CreateSeconds:   m.claims.created.Sub(m.claims.start).Seconds(),
		DeleteSeconds:   m.deletion.end.Sub(m.deletion.start).Seconds(),
		P50:             milliseconds(percentile(latencies, 50)),
		P90:             milliseconds(percentile(latencies, 90)),
		P99:             milliseconds(percentile(latencies, 99)),
		Max:             milliseconds(percentile(latencies, 100)),

		Requests:         own[0].perClaim(n),
		DeletionRequests: own[1].perClaim(n),
		KCMRequests:      perClaim(kcm[0].total, n),
		RequestsByKind:   own[0].byKind,
		DeletionsByKind:  own[1].byKind,
		RefusedRequests:  own[0].refused,
		EventsPerClaim:   perClaim(m.events.total, n),
		EventsByReason:   m.events.byReason,
		ClaimLost:        m.events.lost,
		ConflictWarnings: m.events.conflicts,

		PeakRSS:    m.peakRSS,
		CPUSeconds: m.cpu,
	}, nil
}

func (c requestCounts) perClaim(n int) map[string]float64 {
	rates := map[string]float64{}
	for _, verb := range verbs {
		rates[verb] = perClaim(c.byVerb[verb], n)
	}
	return rates
}

func writeJSON(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

// writeText writes the tables. paced says that claims came at a given rate, so that
// claims/s say nothing.
func (r *report) writeText(out io.Writer, paced bool) error {
	t := &table{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	t.line("%s", r.Environment.text())
	r.writeSpeed(t)
	r.writeRequests(t)
	r.writeCost(t)
	t.line("")
	t.line("library: %d workers, client QPS %d, protobuf: far more than its users have.", workers, libraryQPS)
	if s := r.Single; s != nil {
		t.line("one by one through berth: %d claims, p50 %.0f ms, p99 %.0f ms, max %.0f ms, %d of them bound by berth, %d ClaimLost, %d conflict warnings",
			s.N, s.P50, s.P99, s.Max, s.BoundByBerth, s.ClaimLost, s.ConflictWarnings)
	}
	if !paced {
		r.writeRatios(t)
	}
	return cmp.Or(t.err, t.w.Flush())
}

func (e environmentReport) text() string {
	qps := "default QPS"
	if e.KCMQPS > 0 {
		qps = fmt.Sprintf("QPS %d", e.KCMQPS)
	}
	load := "all claims at once"
	if e.Rate > 0 {
		load = fmt.Sprintf("%g claims/s", e.Rate)
	}
	if e.WaitForConsumer {
		load += ", counted from when a claim gets its node"
	}
	if e.Deletions > 0 {
		load += fmt.Sprintf(", while %d claims are deleted", e.Deletions)
	}
	return fmt.Sprintf("Kubernetes %s, kube-controller-manager with %s, etcd without fsync, %d CPUs for everything, %s; %s",
		e.Kubernetes, qps, e.CPUs, e.Go, load)
}

func (r *report) writeSpeed(t *table) {
	t.line("")
	t.line("Time to Bound, as one watch sees it. create: time to create the claims; delete: until volumes and directories are gone.")
	t.row("run", "claims", "claims/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "create s", "elapsed s", "delete s")
	for _, x := range r.Runs {
		t.row(x.label(), x.Claims, fixed(1, x.ClaimsPerSecond), fixed(0, x.P50), fixed(0, x.P90), fixed(0, x.P99), fixed(0, x.Max),
			fixed(1, x.CreateSeconds), fixed(1, x.ElapsedSeconds), fixed(1, x.DeleteSeconds))
	}
}

func (r *report) writeRequests(t *table) {
	t.line("")
	t.line("Requests per claim that the provisioner sent, those for events included, leases and watches excluded: until the claims are Bound, then to delete them.")
	if r.Environment.Deletions > 0 {
		t.line("Those for the claims that are deleted meanwhile are among the former.")
	}
	t.line("kcm: those of kube-controller-manager's volume controller. events: Event writes about the claims, by anyone.")
	header := []any{"run"}
	for _, verb := range verbs {
		header = append(header, verb)
	}
	for _, verb := range verbs {
		header = append(header, "del:"+verb)
	}
	t.row(append(header, "kcm", "events", "ClaimLost", "conflicts")...)
	for _, x := range r.Runs {
		cells := []any{x.label()}
		for _, requests := range []map[string]float64{x.Requests, x.DeletionRequests} {
			for _, verb := range verbs {
				cells = append(cells, fixed(2, requests[verb]))
			}
		}
		t.row(append(cells, fixed(2, x.KCMRequests), fixed(2, x.EventsPerClaim), x.ClaimLost, x.ConflictWarnings)...)
	}
	for _, x := range r.Runs {
		t.line("%s: %s; events: %s; refused: %s", x.label(), countsText(x.RequestsByKind), countsText(x.EventsByReason), countsText(x.RefusedRequests))
	}
}

func (r *report) writeCost(t *table) {
	names := []string{"provisioner", "apiserver", "etcd", "kcm", "bench", others}
	t.line("")
	t.line("CPU seconds from the first create to the last Bound, what others on the machine took (which disturbs), how busy all CPUs were, and the")
	t.line("provisioner's peak memory over its whole life.")
	header := []any{"run"}
	for _, name := range names {
		header = append(header, name)
	}
	t.row(append(header, "busy %", "peak RSS MiB")...)
	for _, x := range r.Runs {
		cells := []any{x.label()}
		var sum float64
		for _, name := range names {
			cells = append(cells, fixed(2, x.CPUSeconds[name]))
			sum += x.CPUSeconds[name]
		}
		t.row(append(cells, fixed(0, 100*sum/x.ElapsedSeconds/float64(r.Environment.CPUs)), fixed(1, float64(x.PeakRSS)/(1<<20)))...)
	}
}

// writeRatios compares the medians over the rounds.
func (r *report) writeRatios(t *table) {
	speed := map[string]float64{}
	for _, name := range runNames {
		speed[name] = median(r.each(name, func(x runResult) float64 { return x.ClaimsPerSecond }))
	}
	if speed[runBerth] == 0 {
		return
	}
	if speed[runLibrary] > 0 {
		t.line("a/c = %.1f x (berth / library)", speed[runBerth]/speed[runLibrary])
	}
	if speed[runBare] == 0 {
		return
	}
	t.line("a/d = %.0f %% (berth / bare)", 100*speed[runBerth]/speed[runBare])
	const grace = controllers.DefaultBindGrace
	graceless := median(r.each(runBerth, func(x runResult) float64 {
		return float64(x.Claims) / max(x.ElapsedSeconds-grace.Seconds(), time.Millisecond.Seconds())
	}))
	t.line("a/d = %.0f %% with berth's bind grace of %s, in which it waits for kube-controller-manager, taken off its elapsed time", 100*graceless/speed[runBare], grace)
}

func (r *report) each(name string, value func(runResult) float64) []float64 {
	var values []float64
	for _, x := range r.Runs {
		if x.Name == name {
			values = append(values, value(x))
		}
	}
	return values
}

func (r runResult) label() string {
	return fmt.Sprintf("%s/%d", r.Name, r.Round)
}

func fixed(decimals int, value float64) string {
	return fmt.Sprintf("%.*f", decimals, value)
}

// countsText lists counts, the greatest first.
func countsText(counts map[string]int) string {
	if len(counts) == 0 {
		return "none"
	}
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%d %s", counts[name], name)
	}
	return strings.Join(parts, ", ")
}

// table writes aligned rows and lines between them; the first error stays.
type table struct {
	w   *tabwriter.Writer
	err error
}

func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = fmt.Sprint(cell)
	}
	t.write(strings.Join(texts, "\t") + "\t\n")
}

// line ends the columns of the rows before it.
func (t *table) line(format string, args ...any) {
	t.err = cmp.Or(t.err, t.w.Flush())
	t.write(fmt.Sprintf(format, args...) + "\n")
	t.err = cmp.Or(t.err, t.w.Flush())
}

func (t *table) write(text string) {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, text)
	}
}
