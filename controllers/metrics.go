package controllers

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-storage/berth/provisioner"
)

// Metrics are the series of the reconcilers in this package. All names begin
// with berth_.
type Metrics struct {
	bindSeconds    *prometheus.HistogramVec
	census         *censusCollector
	lostRepaired   prometheus.Counter
	lag            *lagCollector
	orphans        *prometheus.GaugeVec
	orphansRemoved *prometheus.CounterVec
	missing        *prometheus.GaugeVec
	strays         *prometheus.GaugeVec
	sharedPools    *prometheus.GaugeVec
	movedVolumes   *prometheus.GaugeVec
	expandSeconds  *prometheus.HistogramVec
	expandFailed   *prometheus.CounterVec
	capacity       *capacityCollector
	capacityWrites *prometheus.CounterVec
	lostNodes      prometheus.Gauge
	lostVolumes    *prometheus.GaugeVec
	lostDropped    *prometheus.CounterVec
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
			Buckets: provisioner.DurationBuckets,
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
	m.strays = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "berth_stray_volumes",
		Help: "Storage that is left since the PersistentVolume of its name is somewhere else, at the last sweep: attempts that were given up, and copies. Broken down by driver.",
	}, []string{"driver"})
	m.sharedPools = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "berth_shared_pools",
		Help: "Pool ids that were found in more than one place, where nothing is made or removed therefore. Broken down by driver.",
	}, []string{"driver"})
	m.movedVolumes = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "berth_moved_volumes",
		Help: "PersistentVolumes that name a node whose pool another node has: it was renamed, or its disk was moved. Broken down by driver.",
	}, []string{"driver"})
	registerer.MustRegister(m.strays, m.sharedPools, m.movedVolumes)
	m.expandSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_expansion_duration_seconds",
		Help:    "Seconds it took to expand a volume, attempts that failed left out. Broken down by class.",
		Buckets: provisioner.DurationBuckets,
	}, []string{"class"})
	m.expandFailed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_expansions_failed_total",
		Help: "Attempts to expand a volume that failed. Broken down by class.",
	}, []string{"class"})
	m.census = newCensusCollector()
	m.capacity = newCapacityCollector()
	m.capacityWrites = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_capacity_writes_total",
		Help: "CSIStorageCapacity objects written. Broken down by operation: create, update, delete.",
	}, []string{"operation"})
	m.lostNodes = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berth_lost_nodes",
		Help: "Nodes that were deleted and still have volumes.",
	})
	m.lostVolumes = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "berth_lost_node_volumes",
		Help: "Volumes on Nodes that were deleted. Broken down by driver and state: waiting (the Node may still come back), bound (a claim has the volume), retained (nobody has it, and its policy keeps it).",
	}, []string{"driver", "state"})
	m.lostDropped = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_lost_node_volumes_dropped_total",
		Help: "Volumes that were dropped because their Node was deleted; their storage was not. Broken down by driver.",
	}, []string{"driver"})
	registerer.MustRegister(m.census, m.capacity, m.capacityWrites, m.lostNodes, m.lostVolumes, m.lostDropped)
	m.lag = &lagCollector{}
	registerer.MustRegister(m.lag)
	registerer.MustRegister(m.bindSeconds, m.lostRepaired, m.orphans, m.orphansRemoved, m.missing, m.expandSeconds, m.expandFailed)
	return m
}
