package controlplane

import (
	"context"
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/rest"
)

// RequestKey is a kind of request to the API server.
type RequestKey struct {
	Verb        string // GET, LIST, WATCH, POST, PUT, PATCH, APPLY, DELETE ...
	Resource    string // persistentvolumeclaims; "" for requests that are about no resource
	Subresource string // status; "" for the object itself
}

// RequestCounts returns how many requests of each kind the API server has
// answered since it started, whatever the answer. It reads the server's own
// counter, apiserver_request_total, so it costs no audit log and sees every client.
func (c *ControlPlane) RequestCounts(ctx context.Context) (map[RequestKey]float64, error) {
	families, err := c.metrics(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[RequestKey]float64{}
	for _, metric := range families["apiserver_request_total"].GetMetric() {
		counts[keyOf(metric)] += metric.GetCounter().GetValue()
	}
	return counts, nil
}

// WatchCounts returns how many watches of each resource are under way, whoever
// watches.
func (c *ControlPlane) WatchCounts(ctx context.Context) (map[string]int, error) {
	families, err := c.metrics(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, metric := range families["apiserver_longrunning_requests"].GetMetric() {
		if key := keyOf(metric); key.Verb == "WATCH" {
			counts[key.Resource] += int(metric.GetGauge().GetValue())
		}
	}
	return counts, nil
}

func keyOf(metric *dto.Metric) (key RequestKey) {
	for _, label := range metric.GetLabel() {
		switch label.GetName() {
		case "verb":
			key.Verb = label.GetValue()
		case "resource":
			key.Resource = label.GetValue()
		case "subresource":
			key.Subresource = label.GetValue()
		}
	}
	return key
}

// metrics reads the API server's metrics.
func (c *ControlPlane) metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	client, err := rest.HTTPClientFor(c.admin)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.admin.Host+"metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the API server's metrics: %s", resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return families, nil
}
