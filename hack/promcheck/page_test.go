package promcheck

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	metricsPage   = "../../docs/metrics.md"
	operations    = "../../docs/operations.md"
	alertsFile    = "../../charts/berth/files/alerts.yaml"
	dashboardFile = "../../charts/berth/dashboards/berth.json"
)

// metric is what the page says of one.
type metric struct {
	kind   string
	labels []string
}

var (
	metricsRow = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| (counter|gauge|histogram) \\|(.*?)\\| (.+) \\|$")
	labelName  = regexp.MustCompile("`([a-z_]+)`")
)

// readMetrics reads the page. Of a histogram it has the series that Prometheus
// makes of it.
func readMetrics(t *testing.T) map[string]metric {
	t.Helper()
	metrics := map[string]metric{}
	for line := range strings.SplitSeq(read(t, metricsPage), "\n") {
		row := metricsRow.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		m := metric{kind: row[2]}
		for _, label := range labelName.FindAllStringSubmatch(row[3], -1) {
			m.labels = append(m.labels, label[1])
		}
		if m.kind != "histogram" {
			metrics[row[1]] = m
			continue
		}
		metrics[row[1]+"_sum"], metrics[row[1]+"_count"] = m, m
		m.labels = append(slices.Clone(m.labels), "le")
		metrics[row[1]+"_bucket"] = m
	}
	if len(metrics) == 0 {
		t.Fatalf("%s has no metrics", metricsPage)
	}
	return metrics
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ofPrometheus are the labels that it adds to everything it scrapes.
var ofPrometheus = []string{"job", "instance"}

// check reads a query, and compares all that it selects with the page.
func check(query string, metrics map[string]metric) error {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return err
	}
	var problem error
	complain := func(format string, args ...any) {
		if problem == nil {
			problem = fmt.Errorf(format, args...)
		}
	}
	known := map[string]bool{}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if call, ok := node.(*parser.Call); ok && (call.Func.Name == "rate" || call.Func.Name == "increase") {
			if series, ok := call.Args[0].(*parser.MatrixSelector); ok {
				name := series.VectorSelector.(*parser.VectorSelector).Name
				if metrics[name].kind == "gauge" {
					complain("%s of the gauge %s", call.Func.Name, name)
				}
			}
		}
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m, ok := metrics[selector.Name]
		if !ok {
			complain("%s is not in %s", selector.Name, metricsPage)
			return nil
		}
		for _, label := range slices.Concat(m.labels, ofPrometheus) {
			known[label] = true
		}
		for _, matcher := range selector.LabelMatchers {
			if matcher.Name != labels.MetricName && !slices.Contains(m.labels, matcher.Name) {
				complain("%s has no label %s", selector.Name, matcher.Name)
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if sum, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range sum.Grouping {
				if !known[label] {
					complain("nothing in %s has the label %s", query, label)
				}
			}
		}
		return nil
	})
	return problem
}

var usedLabel = regexp.MustCompile(`\$labels\.([a-z_]+)`)

func TestQueriesThatCannotWorkAreNoticed(t *testing.T) {
	metrics := readMetrics(t)
	for query, want := range map[string]string{
		`sum(berth_volume)`:                          "berth_volume is not in",
		`berth_volumes{claas="a"}`:                   "no label claas",
		`sum by (claas) (berth_volumes)`:             "has the label claas",
		`rate(berth_volumes[5m])`:                    "gauge",
		`sum(berth_volumes`:                          "unclosed",
		`berth_bind_duration_seconds`:                "not in",
		`max by (phase) (berth_claims_waiting)`:      "has the label phase",
		`berth_bind_duration_seconds_bucket{le="1"}`: "",
	} {
		err := check(query, metrics)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v, want %q", query, err, want)
		}
	}
}
