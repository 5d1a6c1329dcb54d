package agents

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner/hostpath"
)

// The values of the label state.
const (
	stateReady    = "ready"
	stateNotReady = "not_ready"
	stateSilent   = "silent"
)

// Metrics are the series of the controller's side of agents. Calls have the
// name and labels that the sidecars of CSI use.
type Metrics struct {
	calls *prometheus.HistogramVec

	mu     sync.Mutex
	agents *Agents
}

var (
	agentsDesc = prometheus.NewDesc("berth_agents",
		"Agents on nodes. Broken down by state: ready, not_ready (says the pod), silent (ready, but did not answer when it was last called).",
		[]string{"state"}, nil)
	callsDesc       = prometheus.NewDesc("berth_agent_calls_in_flight", "Calls to agents that are under way, all agents together; 128 at most.", nil, nil)
	connectionsDesc = prometheus.NewDesc("berth_agent_connections", "Open connections to agents.", nil, nil)
)

// NewMetrics returns the series, registered in registerer. It panics when they
// are registered twice.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:        "csi_sidecar_operations_seconds",
		Help:        "Seconds that calls to agents took. Broken down by method and by gRPC status code.",
		ConstLabels: prometheus.Labels{"driver_name": hostpath.Name},
		Buckets:     []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"method_name", "grpc_status_code"})}
	registerer.MustRegister(m.calls, m)
	return m
}

func (m *Metrics) observe(method string, code codes.Code, took time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(took.Seconds())
}

func (m *Metrics) follow(a *Agents) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agents = a
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- agentsDesc
	descs <- callsDesc
	descs <- connectionsDesc
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	agents := m.agents
	m.mu.Unlock()
	if agents == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(callsDesc, len(agents.places))
	gauge(connectionsDesc, agents.connections())
	count, err := agents.Count(context.Background())
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(agentsDesc, err)
		return
	}
	gauge(agentsDesc, count.Ready, stateReady)
	gauge(agentsDesc, count.NotReady, stateNotReady)
	gauge(agentsDesc, count.Silent, stateSilent)
}

// Count is how many agents there are: ready and answering, not ready by their
// pods' word, and those that are ready but did not answer when they were called
// last.
type Count struct{ Ready, NotReady, Silent int }

// Count counts the agents. It calls none of them.
func (a *Agents) Count(ctx context.Context) (Count, error) {
	endpoints, err := a.endpoints(ctx)
	if err != nil {
		return Count{}, err
	}
	silent := map[string]bool{}
	for _, agent := range a.snapshot() {
		silent[agent.address] = agent.isSilent()
	}
	count := Count{}
	for _, e := range endpoints {
		switch {
		case !e.ready:
			count.NotReady++
		case silent[e.address]:
			count.Silent++
		default:
			count.Ready++
		}
	}
	return count, nil
}

// connections counts the open connections.
func (a *Agents) connections() int {
	count := 0
	for _, agent := range a.snapshot() {
		if agent.connected() {
			count++
		}
	}
	return count
}
