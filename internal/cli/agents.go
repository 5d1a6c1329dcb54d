package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-storage/berth/internal/agentca"
	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
)

// namespaceFile says in a pod which namespace it is in.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// agentsOptions are the controller's flags for agents on nodes.
type agentsOptions struct {
	service   string
	namespace string
	port      int
	timeout   time.Duration
	// unreachableAfter is how long a node may not answer before its claims go
	// back to the scheduler.
	unreachableAfter time.Duration

	files   certificateFiles
	secrets agentca.Secrets

	// reached is the way to the agents, once it is set up.
	reached *agents.Agents
}

func (o *agentsOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.service, "agent-service", "", "name of the Service of the agents; makes volumes on all nodes that have one, instead of on this one (--node-name, --pool)")
	f.StringVar(&o.namespace, "agent-namespace", "", "namespace of that Service, and of the Secrets with certificates (default: the namespace of the pod)")
	f.IntVar(&o.port, "agent-port", 0, "port that agents listen on (default: that of the Service's endpoints)")
	f.DurationVar(&o.timeout, "agent-timeout", agents.DefaultTimeout, "how long an agent may take to answer before its claims are put off")
	f.DurationVar(&o.unreachableAfter, "agent-unreachable-after", hostpath.DefaultUnreachableAfter, "how long an agent, or the disks of a pool, may not answer before the scheduler has to choose another node for its claims")
	f.StringVar(&o.secrets.Authority, "tls-ca-secret", "berth-ca", "name of the Secret for the authority that signs certificates")
	f.StringVar(&o.secrets.Agent, "tls-agent-secret", "berth-agent-tls", "name of the Secret for the certificate of agents")
	f.StringVar(&o.secrets.Controller, "tls-controller-secret", "berth-controller-tls", "name of the Secret for the certificate of the controller. With --tls-cert-file nothing is issued, and no Secret is read or written")
	f.StringVar(&o.secrets.Metrics, "tls-metrics-secret", "", "name of the Secret for the certificate by which the agents let Prometheus read their metrics (default: none is issued)")
	o.files.addFlags(f)
}

// enabled reports whether there are agents.
func (o *agentsOptions) enabled() bool { return o.service != "" }

// validate refuses what can't work, and finds the namespace. pools says that this
// process has pools itself.
func (o *agentsOptions) validate(pools bool) error {
	if err := o.files.validate(); err != nil {
		return err
	}
	if !o.enabled() {
		if o.files.given() {
			return errors.New("--tls-cert-file is for agents: give --agent-service too")
		}
		return nil
	}
	switch {
	case pools:
		return errors.New("--agent-service makes volumes on the nodes that have agents: leave --node-name and --pool to these")
	case o.port < 0 || o.port > 65535:
		return fmt.Errorf("--agent-port=%d: want 1 to 65535, or 0 for that of the Service's endpoints", o.port)
	case o.timeout <= 0:
		return fmt.Errorf("--agent-timeout=%s: want more than 0", o.timeout)
	case o.unreachableAfter <= 0:
		return fmt.Errorf("--agent-unreachable-after=%s: want more than 0", o.unreachableAfter)
	}
	if o.namespace == "" {
		text, err := os.ReadFile(namespaceFile)
		if err != nil {
			return errors.New("--agent-service outside a pod needs --agent-namespace: the namespace of the Service")
		}
		o.namespace = strings.TrimSpace(string(text))
	}
	o.secrets.Namespace = o.namespace
	return nil
}

// addToCache adds what the manager's cache has to hold for agents.
func (o *agentsOptions) addToCache(options *cache.Options) {
	options.ByObject[&discoveryv1.EndpointSlice{}] = cache.ByObject{
		Namespaces: map[string]cache.Config{o.namespace: {
			LabelSelector: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: o.service}),
		}},
	}
	options.ByObject[&corev1.Node{}] = cache.ByObject{Transform: slimNode}
}

// slimNode leaves of a Node what decides whether a volume may be made there.
// There may be thousands, and each is written every few minutes.
func slimNode(o any) (any, error) {
	node, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	slim := &corev1.Node{ObjectMeta: node.ObjectMeta}
	slim.ManagedFields, slim.Annotations, slim.OwnerReferences = nil, nil, nil
	slim.Spec.Unschedulable, slim.Spec.Taints = node.Spec.Unschedulable, node.Spec.Taints
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			slim.Status.Conditions = []corev1.NodeCondition{{Type: condition.Type, Status: condition.Status, LastTransitionTime: condition.LastTransitionTime}}
		}
	}
	return slim, nil
}

// setup returns the way to the agents, whose certificates are looked after while
// mgr runs.
func (o *agentsOptions) setup(ctx context.Context, mgr manager.Manager) (*agents.Agents, error) {
	if err := agents.SetupIndex(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, err
	}
	// From the start, so that the first claim does not wait for all Nodes.
	if _, err := mgr.GetCache().GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false)); err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	source, err := o.certificates(mgr)
	if err != nil {
		return nil, err
	}
	o.reached, err = agents.New(agents.Options{
		Reader: mgr.GetClient(), Namespace: o.namespace, Service: o.service, Port: o.port, Timeout: o.timeout,
		Credentials: agenttls.ClientCredentials(source), Metrics: agents.NewMetrics(metrics.Registry),
		Log: mgr.GetLogger().WithName("agents"),
	})
	return o.reached, err
}

// certificates returns what the controller shows to agents: what is in files, or
// what it issues itself.
func (o *agentsOptions) certificates(mgr manager.Manager) (agenttls.Source, error) {
	if o.files.given() {
		files := o.files.source(mgr.GetLogger().WithName("certificates"))
		if err := mgr.Add(files); err != nil {
			return nil, fmt.Errorf("add certificate files: %w", err)
		}
		return files, metrics.Registry.Register(&agenttls.Expiry{Certificates: agenttls.CertificatesOf("controller", files)})
	}
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return nil, fmt.Errorf("create client for certificates: %w", err)
	}
	issuer := &agentca.Issuer{Reader: mgr.GetAPIReader(), Writer: direct, Secrets: o.secrets, Policy: agentca.DefaultPolicy, Clock: clock.RealClock{}}
	if err := mgr.Add(issuer); err != nil {
		return nil, fmt.Errorf("add the issuer of certificates: %w", err)
	}
	return issuer, metrics.Registry.Register(&agenttls.Expiry{Certificates: issuer.Certificates})
}
