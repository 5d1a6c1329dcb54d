package agents

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/credentials"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/hostpath"
)

const (
	// DefaultPort is where agents listen, if nothing says otherwise.
	DefaultPort = 9460
	// PortName is the name of their port, in a Service with several.
	PortName = "csi"
	// DefaultTimeout is how long an agent may take for one call. It is longer
	// than an agent takes to find that a disk does not answer, so that it can
	// say so.
	DefaultTimeout = 15 * time.Second
	// connectTimeout is how long an agent may take to accept a connection.
	connectTimeout = 5 * time.Second
	// DefaultPerNode is how many calls to one agent are under way at most. It
	// is a quarter of what the controllers work on at a time, so that an agent
	// that goes silent leaves room for others until that is noticed.
	DefaultPerNode = 8
	// DefaultTotal is how many calls are under way at most.
	DefaultTotal = 128
	// DefaultIdle is when a connection that nobody uses is closed.
	DefaultIdle = 2 * time.Minute
	// DefaultMaxIdle is how many such connections there are at most: each costs
	// some 60 KiB, and a look at all nodes, as the orphan sweep takes, opens as
	// many as there are nodes.
	DefaultMaxIdle = 256

	// notReadyRetry is when to look again whether an agent has become ready.
	notReadyRetry = 2 * time.Second
)

// Options configure Agents. All but the first five have defaults.
type Options struct {
	// Reader lists the EndpointSlices of the Service, and may list others. It
	// needs the index of SetupIndex.
	Reader client.Reader
	// Namespace and Service name the Service of the agents.
	Namespace, Service string
	// Credentials prove to agents that the controller calls, and to the
	// controller that an agent answers.
	Credentials credentials.TransportCredentials
	// Metrics counts and times calls.
	Metrics *Metrics

	// Port is where agents listen; the Service's endpoints tell by default.
	Port    int
	Timeout time.Duration
	PerNode int
	Total   int
	Idle    time.Duration
	MaxIdle int
	// Dial makes connections; a net.Dialer does by default.
	Dial  func(ctx context.Context, address string) (net.Conn, error)
	Clock clock.WithDelayedExecution
	Log   logr.Logger
}

// Agents reaches the agents of a cluster.
type Agents struct {
	options Options
	// places are those of all calls under way.
	places chan struct{}
	// probes are the places of those to agents that were not silent, silentProbes
	// those of the others.
	probes, silentProbes chan struct{}
	// patient are the places of callers that wait longer for a probe.
	patient chan struct{}

	mu     sync.Mutex
	agents map[string]*agent // by node

	idle idleConnections
}

var _ hostpath.Nodes = (*Agents)(nil)

// New returns the way to the agents. It connects to none of them.
func New(o Options) (*Agents, error) {
	if o.Reader == nil || o.Namespace == "" || o.Service == "" || o.Credentials == nil || o.Metrics == nil {
		return nil, errors.New("reach agents: Reader, Namespace, Service, Credentials and Metrics are required")
	}
	setDefault(&o.Timeout, DefaultTimeout)
	setDefault(&o.PerNode, DefaultPerNode)
	setDefault(&o.Total, DefaultTotal)
	setDefault(&o.Idle, DefaultIdle)
	setDefault(&o.MaxIdle, DefaultMaxIdle)
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	a := &Agents{options: o, places: make(chan struct{}, o.Total), agents: map[string]*agent{}}
	a.probes, a.silentProbes = make(chan struct{}, probesAtOnce), make(chan struct{}, silentProbesAtOnce)
	a.patient = make(chan struct{}, patientCallers)
	a.idle.most = o.MaxIdle
	o.Metrics.follow(a)
	return a, nil
}

func setDefault[T comparable](option *T, value T) {
	var none T
	if *option == none {
		*option = value
	}
}

// Server returns the agent on a node. It does not connect yet. The error is a
// *provisioner.UnavailableError when the agent is known not to answer, and wraps
// hostpath.ErrNoServer when there is none.
func (a *Agents) Server(ctx context.Context, node string) (csi.ControllerClient, error) {
	found, exists, err := a.find(ctx, node, a.addressOf(node))
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, fmt.Errorf("node %s: %w", node, hostpath.ErrNoServer)
	}
	agent := a.at(found)
	if !found.ready {
		return nil, &provisioner.UnavailableError{
			RetryAfter: notReadyRetry + rand.N(notReadyRetry), //nolint:gosec // nothing secret about it
			Err:        agent.problem(errNotReady),
		}
	}
	if err := agent.gate.Closed(); err != nil {
		return nil, err
	}
	return csi.NewControllerClient(agent), nil
}

var errNotReady = errors.New("its pod is not ready")

// Names returns the names of all nodes with an agent.
func (a *Agents) Names(ctx context.Context) ([]string, error) {
	endpoints, err := a.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make(map[string]bool, len(endpoints))
	var names []string
	for _, e := range endpoints {
		if !nodes[e.node] {
			nodes[e.node] = true
			names = append(names, e.node)
		}
	}
	a.forget(func(node string) bool { return !nodes[node] })
	return names, nil
}

// Close closes all connections; calls under way are finished before theirs is.
func (a *Agents) Close() error {
	a.forget(func(string) bool { return true })
	return nil
}

func (a *Agents) addressOf(node string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if agent := a.agents[node]; agent != nil {
		return agent.address
	}
	return ""
}

// at returns the agent at an endpoint. One at another address is another: what is
// known of the one before says nothing about it.
func (a *Agents) at(e endpoint) *agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.agents[e.node]
	if before != nil && before.address == e.address {
		return before
	}
	if before != nil {
		before.retire()
	}
	agent := &agent{
		endpoint: endpoint{node: e.node, address: e.address},
		all:      a,
		gate:     gate.New(a.options.Clock, a.options.PerNode),
		log:      a.options.Log.WithValues("node", e.node, "address", e.address),
	}
	a.agents[e.node] = agent
	return agent
}

// forget drops the agents of nodes that are gone.
func (a *Agents) forget(gone func(node string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, agent := range a.agents {
		if gone(node) {
			agent.retire()
			delete(a.agents, node)
		}
	}
}

// snapshot returns the agents that have been called so far.
func (a *Agents) snapshot() []*agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	agents := make([]*agent, 0, len(a.agents))
	for _, agent := range a.agents {
		agents = append(agents, agent)
	}
	return slices.Clip(agents)
}

// enter takes one of the places of all calls.
func (a *Agents) enter(ctx context.Context) error {
	select {
	case a.places <- struct{}{}:
		return nil
	default:
	}
	timer := a.options.Clock.NewTimer(a.options.Timeout)
	defer timer.Stop()
	select {
	case a.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C():
		return &provisioner.UnavailableError{
			RetryAfter: gate.ReopenMin + rand.N(gate.ReopenMin), //nolint:gosec // nothing secret about it
			Err:        fmt.Errorf("%w: %d calls to agents are under way, none of them made room for %s", hostpath.ErrNotAsked, cap(a.places), a.options.Timeout),
		}
	}
}

func (a *Agents) leave() { <-a.places }
