package controllers

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the series of the reconcilers in this package. All names begin
// with berth_.
type Metrics struct {
	bindSeconds    *prometheus.HistogramVec
	lostRepaired   prometheus.Counter
	orphans        *prometheus.GaugeVec
	orphansRemoved *prometheus.CounterVec
	missing        *prometheus.GaugeVec
	expandSeconds  *prometheus.HistogramVec
	expandFailed   *prometheus.CounterVec
}

// The values of the label binder: who finished a bind.
const (
	binderBerth   = "berth"
	binderCluster = "cluster"
)

// NewMetrics returns the series, registered in registerer. It panics when they
// are registered twice.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		bindSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_bind_duration_seconds",
			Help:    "Seconds from the moment a provisioned volume was visible to Berth until its claim was bound. Broken down by who finished the bind: berth, or cluster (kube-controller-manager).",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600},
		}, []string{"binder"}),
		lostRepaired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_claims_lost_repaired_total",
			Help: "Claims that were marked Lost although their volume exists, and were put right.",
		}),
		orphans: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "berth_orphaned_volumes",
			Help: "Volumes a driver keeps storage for that no PersistentVolume or pending claim knows, at the last sweep. Broken down by driver.",
		}, []string{"driver"}),
		orphansRemoved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_orphaned_volumes_removed_total",
			Help: "Orphaned volumes that held no data and were removed. Broken down by driver.",
		}, []string{"driver"}),
		missing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "berth_volumes_without_storage",
			Help: "PersistentVolumes whose driver has no record of any storage, at the last sweep. Broken down by driver.",
		}, []string{"driver"}),
	}
	m.expandSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_expansion_duration_seconds",
		Help:    "Seconds it took to expand a volume, attempts that failed left out. Broken down by class.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600},
	}, []string{"class"})
	m.expandFailed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_expansions_failed_total",
		Help: "Attempts to expand a volume that failed. Broken down by class.",
	}, []string{"class"})
	registerer.MustRegister(m.bindSeconds, m.lostRepaired, m.orphans, m.orphansRemoved, m.missing, m.expandSeconds, m.expandFailed)
	return m
}
