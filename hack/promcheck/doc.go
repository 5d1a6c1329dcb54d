// Package promcheck checks the alerts and the dashboard of the chart with
// Prometheus' own code: that every query can be read, asks for metrics and labels
// that docs/metrics.md has, and that every alert fires when it should, and not
// otherwise. What the page has is compared with the registries of controller and
// agent in internal/cli.
//
// It is a module of its own, since Prometheus has many dependencies, and holds
// nothing but tests.
package promcheck
