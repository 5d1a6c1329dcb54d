package provisioner

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"
)

func gather(t *testing.T, registry *prometheus.Registry) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, family := range families {
		byName[family.GetName()] = family
	}
	return byName
}

// counts returns the value of every series, of histograms the number of
// observations.
func counts(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for name, family := range gather(t, registry) {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			values[name] = metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return values
}

func provisionOptions(class string) controller.ProvisionOptions {
	return controller.ProvisionOptions{
		StorageClass: &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}},
		PVC:          &corev1.PersistentVolumeClaim{},
	}
}

func volumeOf(class string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{StorageClassName: class}}
}

func TestInstrumentCountsCallsByOutcome(t *testing.T) {
	ignored := &controller.IgnoredError{Reason: "another's"}
	failed := errors.New("disk on fire")
	const (
		provisioned  = "controller_persistentvolumeclaim_provision_total class=fast source="
		provisionSec = "controller_persistentvolumeclaim_provision_duration_seconds class=fast source="
		provisionErr = "controller_persistentvolumeclaim_provision_failed_total class=fast source="
		deleted      = "controller_persistentvolume_delete_total class=fast"
		deleteSec    = "controller_persistentvolume_delete_duration_seconds class=fast"
		deleteErr    = "controller_persistentvolume_delete_failed_total class=fast"
	)
	for name, tt := range map[string]struct {
		driver plainDriver
		want   map[string]float64
	}{
		"success counts and is timed":        {plainDriver{}, map[string]float64{provisioned: 1, provisionSec: 1, deleted: 1, deleteSec: 1}},
		"failure counts and is not timed":    {plainDriver{provisionErr: failed, deleteErr: failed}, map[string]float64{provisionErr: 1, deleteErr: 1}},
		"an ignored call counts as nothing":  {plainDriver{provisionErr: ignored, deleteErr: ignored}, map[string]float64{}},
		"the two directions don't mix":       {plainDriver{provisionErr: failed}, map[string]float64{provisionErr: 1, deleted: 1, deleteSec: 1}},
		"an infeasible request is a failure": {plainDriver{provisionErr: Infeasible("f", "v", "p")}, map[string]float64{provisionErr: 1, deleted: 1, deleteSec: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewPedanticRegistry()
			driver := Instrument(&tt.driver, NewMetrics(registry))
			if _, _, err := driver.Provision(t.Context(), provisionOptions("fast")); !errors.Is(err, tt.driver.provisionErr) {
				t.Errorf("Provision = %v, want the driver's error %v", err, tt.driver.provisionErr)
			}
			if err := driver.Delete(t.Context(), volumeOf("fast")); !errors.Is(err, tt.driver.deleteErr) {
				t.Errorf("Delete = %v, want the driver's error %v", err, tt.driver.deleteErr)
			}
			if diff := cmp.Diff(tt.want, counts(t, registry)); diff != "" {
				t.Errorf("series (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInstrumentNamesTheDataSourceKind(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	options := provisionOptions("fast")
	options.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "origin"}
	if _, _, err := Instrument(&plainDriver{}, NewMetrics(registry)).Provision(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	if counts(t, registry)["controller_persistentvolumeclaim_provision_total class=fast source=PersistentVolumeClaim"] != 1 {
		t.Errorf("the source label is missing: %v", counts(t, registry))
	}
}

// TestMetricNamesAreTheLibrarys uses every series once, since a vector without
// a series is not exposed.
func TestMetricNamesAreTheLibrarys(t *testing.T) {
	use := func(m metrics.Metrics) {
		m.PersistentVolumeClaimProvisionTotal.WithLabelValues("c", "")
		m.PersistentVolumeClaimProvisionFailedTotal.WithLabelValues("c", "")
		m.PersistentVolumeClaimProvisionDurationSeconds.WithLabelValues("c", "")
		m.PersistentVolumeDeleteTotal.WithLabelValues("c")
		m.PersistentVolumeDeleteFailedTotal.WithLabelValues("c")
		m.PersistentVolumeDeleteDurationSeconds.WithLabelValues("c")
	}
	library, ours := prometheus.NewPedanticRegistry(), prometheus.NewPedanticRegistry()
	m := metrics.New("controller")
	library.MustRegister(m.PersistentVolumeClaimProvisionTotal, m.PersistentVolumeClaimProvisionFailedTotal,
		m.PersistentVolumeClaimProvisionDurationSeconds, m.PersistentVolumeDeleteTotal,
		m.PersistentVolumeDeleteFailedTotal, m.PersistentVolumeDeleteDurationSeconds)
	use(m)
	use(NewMetrics(ours))

	want, got := gather(t, library), gather(t, ours)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("names (-library +ours):\n%s", diff)
	}
	for name := range want {
		if diff := cmp.Diff(want[name].GetHelp(), got[name].GetHelp()); diff != "" {
			t.Errorf("help of %s (-library +ours):\n%s", name, diff)
		}
		if len(got[name].GetMetric()) == 1 {
			if diff := cmp.Diff(labelNames(want[name]), labelNames(got[name])); diff != "" {
				t.Errorf("labels of %s (-library +ours):\n%s", name, diff)
			}
		}
	}
}

func labelNames(family *dto.MetricFamily) []string {
	var names []string
	for _, label := range family.GetMetric()[0].GetLabel() {
		names = append(names, label.GetName())
	}
	return names
}

func TestDurationBucketsReachMinutes(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := NewMetrics(registry)
	m.PersistentVolumeClaimProvisionDurationSeconds.WithLabelValues("c", "").Observe(1)
	m.PersistentVolumeDeleteDurationSeconds.WithLabelValues("c").Observe(1)
	families := gather(t, registry)
	for _, name := range []string{"controller_persistentvolumeclaim_provision_duration_seconds", "controller_persistentvolume_delete_duration_seconds"} {
		buckets := families[name].GetMetric()[0].GetHistogram().GetBucket()
		if last := buckets[len(buckets)-1].GetUpperBound(); last < 300 {
			t.Errorf("%s: the last bucket ends at %v s: a slow backend can't be told from a hung one", name, last)
		}
	}
}

func TestMetricsRegisteredTwicePanic(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	NewMetrics(registry)
	defer func() {
		if recover() == nil {
			t.Error("the second registration did not panic: its counts would go nowhere")
		}
	}()
	NewMetrics(registry)
}
