package controllers

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descLag = prometheus.NewDesc("berth_cluster_volume_lag_seconds",
		"How far kube-controller-manager may be behind with PersistentVolumes, by what Berth sees of it, in seconds. Above 10, or while older volumes wait for it, Berth leaves the binding to it.", nil, nil)
	descStuck = prometheus.NewDesc("berth_cluster_volumes_stuck",
		"PersistentVolumes whose phase kube-controller-manager does not write although it has been through younger ones: something refuses the write.", nil, nil)
)

// lagCollector tells what the binder knows of kube-controller-manager's lag. It
// tells nothing where Berth does not bind.
type lagCollector struct {
	mu    sync.Mutex
	known func() (lag time.Duration, stuck int)
}

func (c *lagCollector) set(known func() (time.Duration, int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = known
}

func (c *lagCollector) Describe(ch chan<- *prometheus.Desc) { ch <- descLag; ch <- descStuck }

func (c *lagCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	if known == nil {
		return
	}
	lag, stuck := known()
	ch <- prometheus.MustNewConstMetric(descLag, prometheus.GaugeValue, lag.Seconds())
	ch <- prometheus.MustNewConstMetric(descStuck, prometheus.GaugeValue, float64(stuck))
}
