package promcheck

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/promql/parser"
)

// mentions says whether what an expression yields has a label: all that is summed
// has those it is summed by, and the rest those of its first metric.
func mentions(query, label string, metrics map[string]metric) error {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return err
	}
	if !yields(expr, label, metrics) {
		return fmt.Errorf("a text mentions the label %s, which %s does not yield", label, query)
	}
	return nil
}

func yields(expr parser.Expr, label string, metrics map[string]metric) bool {
	switch e := expr.(type) {
	case *parser.VectorSelector:
		return slices.Contains(metrics[e.Name].labels, label) || slices.Contains(ofPrometheus, label)
	case *parser.MatrixSelector:
		return yields(e.VectorSelector, label, metrics)
	case *parser.ParenExpr:
		return yields(e.Expr, label, metrics)
	case *parser.AggregateExpr:
		if e.Op == parser.TOPK || e.Op == parser.BOTTOMK {
			return yields(e.Expr, label, metrics)
		}
		return slices.Contains(e.Grouping, label) && !e.Without
	case *parser.BinaryExpr:
		return yields(e.LHS, label, metrics)
	case *parser.Call:
		return slices.ContainsFunc(e.Args, func(arg parser.Expr) bool { return yields(arg, label, metrics) })
	}
	return false
}
