package provisioner

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"
)

// DurationBuckets are those of all histograms of what users wait for. They reach
// from a rename to a slow backend: 5 ms to 10 min. The library's own end at 10 s.
var DurationBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}

// NewMetrics returns the library's series under the library's names, so that
// dashboards made for other external provisioners keep working, with buckets
// that reach minutes, registered in registerer. It panics when they are
// registered twice.
func NewMetrics(registerer prometheus.Registerer) metrics.Metrics {
	const subsystem = "controller"
	m := metrics.New(subsystem)
	m.PersistentVolumeClaimProvisionDurationSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: subsystem,
		Name:      "persistentvolumeclaim_provision_duration_seconds",
		Help:      "Latency in seconds to provision persistent volumes. Failed provisioning attempts are ignored. Broken down by storage class name and source of the claim.",
		Buckets:   DurationBuckets,
	}, []string{"class", "source"})
	m.PersistentVolumeDeleteDurationSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: subsystem,
		Name:      "persistentvolume_delete_duration_seconds",
		Help:      "Latency in seconds to delete persistent volumes. Failed deletion attempts are ignored. Broken down by storage class name.",
		Buckets:   DurationBuckets,
	}, []string{"class"})
	registerer.MustRegister(
		m.PersistentVolumeClaimProvisionTotal,
		m.PersistentVolumeClaimProvisionFailedTotal,
		m.PersistentVolumeClaimProvisionDurationSeconds,
		m.PersistentVolumeDeleteTotal,
		m.PersistentVolumeDeleteFailedTotal,
		m.PersistentVolumeDeleteDurationSeconds,
	)
	return m
}

// Instrument returns driver with its calls counted and timed in m. A call that
// the driver ignores (controller.IgnoredError) counts neither as a success nor
// as a failure. Optional interfaces of driver are found with As.
func Instrument(driver Driver, m metrics.Metrics) Driver {
	return &instrumented{driver: driver, metrics: m}
}

type instrumented struct {
	driver  Driver
	metrics metrics.Metrics
}

func (i *instrumented) Unwrap() Driver { return i.driver }

func (i *instrumented) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	start := time.Now()
	volume, state, err := i.driver.Provision(ctx, options)
	class, source := options.StorageClass.Name, sourceOf(options.PVC)
	switch {
	case err == nil:
		i.metrics.PersistentVolumeClaimProvisionTotal.WithLabelValues(class, source).Inc()
		i.metrics.PersistentVolumeClaimProvisionDurationSeconds.WithLabelValues(class, source).Observe(time.Since(start).Seconds())
	case !IsIgnored(err):
		i.metrics.PersistentVolumeClaimProvisionFailedTotal.WithLabelValues(class, source).Inc()
	}
	return volume, state, err
}

// sourceOf names what a claim is to be filled from. A claim's author may write any
// kind, which must not make a series each.
func sourceOf(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.DataSource == nil {
		return ""
	}
	switch kind := claim.Spec.DataSource.Kind; kind {
	case "PersistentVolumeClaim", "VolumeSnapshot":
		return kind
	}
	return "other"
}

func (i *instrumented) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	start := time.Now()
	err := i.driver.Delete(ctx, volume)
	class := volume.Spec.StorageClassName
	switch {
	case err == nil:
		i.metrics.PersistentVolumeDeleteTotal.WithLabelValues(class).Inc()
		i.metrics.PersistentVolumeDeleteDurationSeconds.WithLabelValues(class).Observe(time.Since(start).Seconds())
	case !IsIgnored(err):
		i.metrics.PersistentVolumeDeleteFailedTotal.WithLabelValues(class).Inc()
	}
	return err
}

// IsIgnored reports whether err says that the driver left a call to somebody
// else (controller.IgnoredError).
func IsIgnored(err error) bool {
	var ignored *controller.IgnoredError
	return errors.As(err, &ignored)
}
