package cli

import (
	"context"
	"errors"
	"net"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/berth-storage/berth/internal/agent"
	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

// agentOptions are the flags of berth agent.
type agentOptions struct {
	nodeName string
	poolOptions
	certificateFiles

	listen       string
	metrics      metricsOptions
	probeAddress string

	logging zap.Options
}

func newAgentCommand() *cobra.Command {
	o := agentOptions{}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a node: serve its pools to the controller, without any access to the Kubernetes API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.nodeName, "node-name", "", "name of the Node this process runs on")
	o.poolOptions.addFlags(f)
	o.certificateFiles.addFlags(f)
	f.StringVar(&o.listen, "listen", net.JoinHostPort("", strconv.Itoa(agents.DefaultPort)), "address to serve the controller on")
	o.metrics.addFlags(f, "who has a certificate for "+agenttls.MetricsName+" that --tls-ca-file has signed")
	f.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address to serve /healthz and /readyz on (with ?verbose for more); 0 for none")
	addLoggingFlags(f, &o.logging)
	return cmd
}

// run runs the agent until ctx ends.
func (o *agentOptions) run(ctx context.Context) error {
	setLogger(&o.logging)
	a, err := o.agent(prometheus.NewRegistry())
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// agent wires the agent, whose metrics are in registry. Nothing here may ask for a
// configuration of Kubernetes.
func (o *agentOptions) agent(registry *prometheus.Registry) (*agent.Agent, error) {
	log := ctrl.Log.WithName("agent")
	if err := o.validate(); err != nil {
		return nil, err
	}
	if !o.given() {
		return nil, errors.New("the agent needs a certificate: give --tls-cert-file, --tls-key-file and --tls-ca-file")
	}
	if err := o.metrics.validate(); err != nil {
		return nil, err
	}
	options, err := o.nodeOptions(o.nodeName, log)
	if err != nil {
		return nil, err
	}
	server, err := node.New(options)
	if err != nil {
		return nil, err
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newBuildInfo())
	return agent.New(agent.Options{
		Node: server, Certificate: o.source(log),
		Listen: o.listen, Metrics: o.metrics.address, Probes: o.probeAddress,
		MetricsInPlain: !o.metrics.secured(), VolumeMetrics: o.metrics.volumes, Registry: registry, Log: log,
	})
}
