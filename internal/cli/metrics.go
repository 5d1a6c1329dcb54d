package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/berth-storage/berth/internal/metricsauth"
)

// The values of --metrics-secure.
const (
	secureAuto = "auto"
	secureOn   = "true"
	secureOff  = "false"
)

// metricsOptions are the flags of /metrics that both roles have.
type metricsOptions struct {
	address string
	secure  string
	volumes bool
}

func (o *metricsOptions) addFlags(f *pflag.FlagSet, secured string) {
	f.StringVar(&o.address, "metrics-bind-address", "127.0.0.1:8080", "address to serve /metrics on; 0 for none")
	f.StringVar(&o.secure, "metrics-secure", secureAuto, "true serves /metrics by HTTPS to "+secured+", false by HTTP to anybody; auto is false on a loopback address, and true on others")
	f.BoolVar(&o.volumes, "volume-metrics", true, "have metrics of each volume whose size is enforced: two series a volume")
}

func (o *metricsOptions) validate() error {
	switch o.secure {
	case secureAuto, secureOn, secureOff:
		return nil
	}
	return fmt.Errorf("--metrics-secure=%q: want %s, %s or %s", o.secure, secureAuto, secureOn, secureOff)
}

// secured reports whether readers have to say who they are.
func (o *metricsOptions) secured() bool {
	return o.secure == secureOn || o.secure == secureAuto && !isLoopback(o.address)
}

// isLoopback reports whether nobody but this machine, or this pod, can reach an
// address to listen on.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// controllerMetricsOptions are the flags of the controller's /metrics.
type controllerMetricsOptions struct {
	metricsOptions
	certificate, key string
	// watcher follows the certificate, if it is in a file.
	watcher *certwatcher.CertWatcher
}

func (o *controllerMetricsOptions) addFlags(f *pflag.FlagSet) {
	o.metricsOptions.addFlags(f, "whom Kubernetes lets get /metrics")
	f.StringVar(&o.certificate, "metrics-cert-file", "", "file of the certificate to serve /metrics with, in PEM; it is read anew when it changes. Without it the process signs one for itself at each start")
	f.StringVar(&o.key, "metrics-key-file", "", "file of its key")
}

func (o *controllerMetricsOptions) validate() error {
	switch {
	case (o.certificate != "") != (o.key != ""):
		return errors.New("--metrics-cert-file and --metrics-key-file: give both or none")
	case o.certificate != "" && !o.secured():
		return errors.New("--metrics-cert-file is for /metrics by HTTPS: give --metrics-secure=true too")
	}
	return o.metricsOptions.validate()
}

// server returns how the manager serves /metrics.
func (o *controllerMetricsOptions) server() (metricsserver.Options, error) {
	options := metricsserver.Options{BindAddress: o.address}
	if !o.secured() {
		return options, nil
	}
	options.SecureServing = true
	options.FilterProvider = metricsauth.Provider
	options.TLSOpts = []func(*tls.Config){func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		// HTTP/2 has had its share of ways to keep a server busy, and one reader
		// needs none of it.
		c.NextProtos = []string{"http/1.1"}
	}}
	if o.certificate == "" {
		return options, nil
	}
	watcher, err := certwatcher.New(o.certificate, o.key)
	if err != nil {
		return metricsserver.Options{}, fmt.Errorf("--metrics-cert-file=%s: %w", o.certificate, err)
	}
	o.watcher = watcher
	options.TLSOpts = append(options.TLSOpts, func(c *tls.Config) { c.GetCertificate = watcher.GetCertificate })
	return options, nil
}

// setupMetrics adds to mgr what its /metrics needs.
func (o *controllerOptions) setupMetrics(mgr manager.Manager) error {
	if o.metrics.watcher != nil {
		if err := mgr.Add(o.metrics.watcher); err != nil {
			return fmt.Errorf("follow the certificate of /metrics: %w", err)
		}
	}
	return metrics.Registry.Register(newBuildInfo())
}

// newBuildInfo returns the metric that says what runs.
func newBuildInfo() prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "berth_build_info",
		Help:        "Always 1. Its labels say which version of Berth runs, and which Go built it.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "goversion": runtime.Version()},
	})
	info.Set(1)
	return info
}
