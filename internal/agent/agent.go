package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

const (
	// handshakeTimeout is how long somebody may take to say who they are.
	handshakeTimeout = 10 * time.Second
	// maxConnectionAge bounds how long a connection may outlive the certificate
	// that it was made with.
	maxConnectionAge = time.Hour
	// maxCalls is how many calls one connection may have under way: far more
	// than the controller makes.
	maxCalls = 128
	// maxRequest is how long a request may be; the longest have a few KiB.
	maxRequest = 256 << 10
	// shutdownTimeout is how long calls under way may take when the process is
	// asked to end.
	shutdownTimeout = 10 * time.Second
)

// none is the address that stands for no listener.
const none = "0"

// Options configure an Agent. Node, Certificate, Listen and Registry are required.
type Options struct {
	// Node serves the pools.
	Node *node.Server
	// Certificate is what the agent shows, and whom it trusts.
	Certificate *agenttls.Files
	// Listen is the address to serve gRPC on, Metrics and Probes those of
	// /metrics and of /healthz and /readyz; "0" for none of these two.
	Listen, Metrics, Probes string
	// MetricsInPlain serves metrics by HTTP to anybody, instead of by HTTPS to who
	// has a certificate for agenttls.MetricsName.
	MetricsInPlain bool
	// VolumeMetrics says whether there are metrics of each volume.
	VolumeMetrics bool
	// Registry is what /metrics shows.
	Registry *prometheus.Registry
	Log      logr.Logger
	// Listening is called with the address of gRPC when it is served.
	Listening func(net.Addr)
}

// Agent is the process.
type Agent struct {
	options Options
	grpc    *grpc.Server
	probes  *probes
}

// New returns the agent. It fails when options are missing.
func New(o Options) (*Agent, error) {
	if o.Node == nil || o.Certificate == nil || o.Listen == "" || o.Registry == nil {
		return nil, errors.New("agent: Node, Certificate, Listen and Registry are required")
	}
	a := &Agent{options: o, probes: newProbes(o.Node, o.Certificate)}
	metrics := newCallMetrics(o.Registry)
	o.Registry.MustRegister(node.NewCollector(o.Node, o.VolumeMetrics), &agenttls.Expiry{Certificates: agenttls.CertificatesOf("agent", o.Certificate)})
	a.grpc = grpc.NewServer(
		grpc.Creds(agenttls.ServerCredentials(o.Certificate, refusals(o.Log, metrics))),
		grpc.ChainUnaryInterceptor(
			observeCalls(o.Log, metrics),
			recoverCalls(o.Log),
			refuseOtherNodes(o.Node.NodeName()),
		),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: shutdownTimeout}),
	)
	o.Node.Register(a.grpc)
	return a, nil
}

// refusals logs those who are refused, though not every one of a crowd.
func refusals(log logr.Logger, metrics *callMetrics) func(net.Addr, error) {
	limit := rate.NewLimiter(1, 10)
	return func(peer net.Addr, err error) {
		metrics.refused.Inc()
		if limit.Allow() {
			log.Info("Refused a connection", "peer", peer.String(), "reason", err.Error())
		}
	}
}

// Run serves until ctx ends, and finishes the calls under way. It gives the pools
// free at the end.
func (a *Agent) Run(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.options.Listen)
	if err != nil {
		return fmt.Errorf("listen for the controller: %w", err)
	}
	a.options.Log.Info("Serving", "node", a.options.Node.NodeName(), "address", listener.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.serve(ctx, listener) })
	group.Go(func() error { return a.options.Node.Run(ctx) })
	group.Go(func() error { return a.options.Certificate.Start(ctx) })
	group.Go(func() error { return a.probes.run(ctx) })
	group.Go(func() error { return serveHTTP(ctx, "probes", a.options.Probes, nil, a.probes.handler()) })
	group.Go(func() error { return serveHTTP(ctx, "metrics", a.options.Metrics, a.metricsTLS(), a.metrics()) })
	if a.options.Listening != nil {
		a.options.Listening(listener.Addr())
	}
	err = group.Wait()
	return errors.Join(err, a.options.Node.Close())
}

// serve serves gRPC until ctx ends and the calls under way have ended.
func (a *Agent) serve(ctx context.Context, listener net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- a.grpc.Serve(listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the controller: %w", err)
	case <-ctx.Done():
	}
	hurry := time.AfterFunc(shutdownTimeout, a.grpc.Stop)
	defer hurry.Stop()
	a.grpc.GracefulStop()
	return nil
}

func (a *Agent) metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.options.Registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
		// Each scrape looks at every disk.
		MaxRequestsInFlight: 2,
	}))
	return mux
}

// metricsTLS returns how metrics are encrypted; nil when they are not.
func (a *Agent) metricsTLS() *tls.Config {
	if a.options.MetricsInPlain {
		return nil
	}
	return agenttls.MetricsConfig(a.options.Certificate)
}

// serveHTTP serves handler at address until ctx ends, by HTTPS when there is a
// configuration for that.
func serveHTTP(ctx context.Context, what, address string, encrypted *tls.Config, handler http.Handler) error {
	if address == none {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", what, err)
	}
	if encrypted != nil {
		listener = tls.NewListener(listener, encrypted)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: handshakeTimeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	return nil
}
