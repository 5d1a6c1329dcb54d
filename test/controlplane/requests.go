package controlplane

import (
	"context"
	"errors"
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

// QueueDepth returns how many items wait in a work queue of
// kube-controller-manager: "volumes" and "claims" are those that bind volumes.
func (c *ControlPlane) QueueDepth(ctx context.Context, queue string) (int, error) {
	p := c.controllerManager
	if p == nil {
		return 0, fmt.Errorf("%s was not asked for", controllerManagerName)
	}
	config := rest.CopyConfig(c.admin)
	var err error
	if config.Host, config.CAData, err = p.endpoint(); err != nil {
		return 0, err
	}
	families, err := readMetrics(ctx, config)
	if err != nil {
		return 0, fmt.Errorf("read %s's metrics: %w", p.name, err)
	}
	for _, metric := range families["workqueue_depth"].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetName() == "name" && label.GetValue() == queue {
				return int(metric.GetGauge().GetValue()), nil
			}
		}
	}
	return 0, fmt.Errorf("%s has no work queue %q", p.name, queue)
}

// metrics reads the API server's metrics.
func (c *ControlPlane) metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	families, err := readMetrics(ctx, c.admin)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return families, nil
}

// readMetrics reads the metrics of whoever the configuration is for.
func readMetrics(ctx context.Context, config *rest.Config) (map[string]*dto.MetricFamily, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}
