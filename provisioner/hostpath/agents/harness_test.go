package agents_test

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
)

const (
	namespace = "berth-system"
	service   = "berth-agent"
)

// site is a cluster with agents on addresses of the loopback network, all on the
// same port.
type site struct {
	t          *testing.T
	port       int
	client     client.Client
	authority  *tlstest.Authority
	controller *tlstest.Source
	registry   *prometheus.Registry
	agents     *agents.Agents
}

// indexes adapts SetupIndex to the fake client.
type indexes struct{ builder *fake.ClientBuilder }

func (i indexes) IndexField(_ context.Context, o client.Object, field string, extract client.IndexerFunc) error {
	i.builder.WithIndex(o, field, extract)
	return nil
}

func newSite(t *testing.T, change ...func(*agents.Options)) *site {
	t.Helper()
	s := &site{t: t, registry: prometheus.NewRegistry()}
	scheme := runtime.NewScheme()
	s.ok(discoveryv1.AddToScheme(scheme))
	builder := fake.NewClientBuilder().WithScheme(scheme)
	s.ok(agents.SetupIndex(t.Context(), indexes{builder}))
	s.client = builder.Build()
	var err error
	s.authority, err = tlstest.NewAuthority()
	s.ok(err)
	s.controller, err = s.authority.Source(s.authority, tlstest.Controller)
	s.ok(err)
	s.port = freePort(t)
	options := agents.Options{
		Reader: s.client, Namespace: namespace, Service: service, Port: s.port, Timeout: time.Second,
		Credentials: agenttls.ClientCredentials(s.controller), Metrics: agents.NewMetrics(s.registry), Log: logr.Discard(),
	}
	for _, c := range change {
		c(&options)
	}
	s.agents, err = agents.New(options)
	s.ok(err)
	t.Cleanup(func() { s.ok(s.agents.Close()) })
	return s
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// at returns what an EndpointSlice says of an agent.
func at(node, ip string, ready bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		NodeName: ptr.To(node), Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)},
	}
}

// endpoints replaces the EndpointSlice of that name.
func (s *site) endpoints(name string, endpoints ...discoveryv1.Endpoint) {
	s.t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
	}
	s.ok(client.IgnoreNotFound(s.client.Delete(s.t.Context(), slice)))
	slice.ResourceVersion = ""
	slice.AddressType, slice.Endpoints = discoveryv1.AddressTypeIPv4, endpoints
	s.ok(s.client.Create(s.t.Context(), slice))
}

// server is an agent of which everything but the wire is made up.
type server struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	grpc *grpc.Server

	mu       sync.Mutex
	calls    int
	inside   int
	most     int
	nodes    map[string]bool // that were asked for
	peers    map[string]bool // connections
	capacity func(context.Context) (*csi.GetCapacityResponse, error)
	probes   int
	// listening is closed when probes are answered; nil when they always are.
	listening chan struct{}
}

// Probe counts probes, and answers them when it should.
func (s *server) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	s.mu.Lock()
	s.probes++
	listening := s.listening
	s.mu.Unlock()
	if listening != nil {
		select {
		case <-listening:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &csi.ProbeResponse{}, nil
}

// serve starts an agent on ip.
func (s *site) serve(ip string, capacity func(context.Context) (*csi.GetCapacityResponse, error)) *server {
	s.t.Helper()
	source, err := s.authority.Source(s.authority, tlstest.Agent)
	s.ok(err)
	return s.serveAs(ip, source, capacity)
}

func (s *site) serveAs(ip string, source agenttls.Source, capacity func(context.Context) (*csi.GetCapacityResponse, error)) *server {
	s.t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(s.port)))
	s.ok(err)
	server := &server{
		grpc:     grpc.NewServer(grpc.Creds(agenttls.ServerCredentials(source, nil))),
		nodes:    map[string]bool{},
		peers:    map[string]bool{},
		capacity: capacity,
	}
	csi.RegisterIdentityServer(server.grpc, server)
	csi.RegisterControllerServer(server.grpc, server)
	go func() { _ = server.grpc.Serve(listener) }()
	s.t.Cleanup(server.grpc.Stop)
	return server
}

// roomy is an answer.
func roomy(context.Context) (*csi.GetCapacityResponse, error) {
	return &csi.GetCapacityResponse{AvailableCapacity: 1 << 30}, nil
}

// call asks the agent of a node for its capacity.
func (s *site) call(node string) error {
	agent, err := s.agents.Server(s.t.Context(), node)
	if err != nil {
		return err
	}
	_, err = agent.GetCapacity(s.t.Context(), &csi.GetCapacityRequest{})
	return err
}
