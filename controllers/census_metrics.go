package controllers

import (
	"context"
	"maps"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// censusCollector shows a Census. There is no series per volume or claim: a
// cluster may have 150,000.
type censusCollector struct {
	census atomic.Pointer[Census]

	volumes, bytes, waiting, oldest *prometheus.Desc
}

func newCensusCollector() *censusCollector {
	return &censusCollector{
		volumes: prometheus.NewDesc("berth_volumes",
			"PersistentVolumes of Berth's drivers. Broken down by driver, class and phase (as Kubernetes has it: Pending, Bound, Released, Failed).",
			[]string{"driver", "class", "phase"}, nil),
		bytes: prometheus.NewDesc("berth_volumes_size_bytes",
			"Sum of the sizes of these PersistentVolumes. Broken down by driver, class and phase.",
			[]string{"driver", "class", "phase"}, nil),
		waiting: prometheus.NewDesc("berth_claims_waiting",
			"Claims that should have a volume by now, and are not bound. Those that wait for a pod to be given a node are left out. Broken down by driver and class.",
			[]string{"driver", "class"}, nil),
		oldest: prometheus.NewDesc("berth_claims_waiting_oldest_seconds",
			"How long the first of these claims has waited; 0 when there is none. Broken down by driver and class.",
			[]string{"driver", "class"}, nil),
	}
}

// follow has the series tell of census from now on.
func (c *censusCollector) follow(census *Census) { c.census.Store(census) }

// Describe implements prometheus.Collector.
func (c *censusCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.volumes, c.bytes, c.waiting, c.oldest} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. It reads nothing but the cache.
func (c *censusCollector) Collect(metrics chan<- prometheus.Metric) {
	census := c.census.Load()
	if census == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	census.mu.Lock()
	sums := maps.Clone(census.volumes)
	census.mu.Unlock()
	for kind, sum := range sums {
		gauge(c.volumes, float64(sum.volumes), kind.driver, kind.class, kind.phase)
		gauge(c.bytes, float64(sum.bytes), kind.driver, kind.class, kind.phase)
	}
	waiting, err := census.claimsWaiting(context.Background())
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(c.waiting, err)
		return
	}
	for class, sum := range waiting {
		gauge(c.waiting, float64(sum.claims), class.Provisioner, class.Name)
		gauge(c.oldest, sum.oldest.Seconds(), class.Provisioner, class.Name)
	}
}
