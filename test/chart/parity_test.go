package chart

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestChartAndKustomizeAgree: the chart with its default values and
// config/default are the same objects. What differs is declared here: the
// namespace, which Helm makes otherwise; what "helm test" runs; and labels.
func TestChartAndKustomizeAgree(t *testing.T) {
	fromChart := byID(t, slices.DeleteFunc(render(t), func(o *unstructured.Unstructured) bool {
		return o.GetAnnotations()["helm.sh/hook"] != ""
	}))
	fromConfig := byID(t, slices.DeleteFunc(kustomize(t, "config", "default"), func(o *unstructured.Unstructured) bool {
		return o.GetKind() == "Namespace"
	}))
	for name := range fromChart {
		if fromConfig[name] == nil {
			t.Errorf("config/default lacks %s", name)
		}
	}
	for name, want := range fromConfig {
		got := fromChart[name]
		if got == nil {
			t.Errorf("the chart lacks %s", name)
			continue
		}
		for from, o := range map[string]*unstructured.Unstructured{"config/default": want, "the chart": got} {
			if label := o.GetLabels()["app.kubernetes.io/name"]; label != "berth" {
				t.Errorf("%s of %s can't be found by its label app.kubernetes.io/name: %q", name, from, label)
			}
		}
		normalize(want)
		normalize(got)
		if diff := cmp.Diff(want.Object, got.Object); diff != "" {
			t.Errorf("%s: config/default (-), chart (+):\n%s", name, diff)
		}
	}
}

// TestMonitoringOfKustomizeAgrees is the same for config/prometheus.
func TestMonitoringOfKustomizeAgrees(t *testing.T) {
	fromChart := byID(t, render(t, "--set", "metrics.monitors.enabled=true,metrics.prometheusRule.enabled=true"))
	for _, want := range kustomize(t, "config", "prometheus") {
		got := fromChart[id(want)]
		if got == nil {
			t.Errorf("the chart lacks %s", id(want))
			continue
		}
		normalize(want)
		normalize(got)
		if diff := cmp.Diff(want.Object, got.Object); diff != "" {
			t.Errorf("%s: config/prometheus (-), chart (+):\n%s", id(want), diff)
		}
	}
}

// normalize takes away an object's own labels, and from all selectors the one
// that tells releases apart.
func normalize(o *unstructured.Unstructured) {
	o.SetLabels(nil)
	withoutInstance(o.Object)
}

func withoutInstance(value any) {
	switch v := value.(type) {
	case map[string]any:
		delete(v, "app.kubernetes.io/instance")
		for _, child := range v {
			withoutInstance(child)
		}
	case []any:
		for _, child := range v {
			withoutInstance(child)
		}
	}
}
