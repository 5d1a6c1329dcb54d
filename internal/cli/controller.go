package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-storage/berth/controllers"
	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/nfs"
)

// The values of --binding.
const (
	bindingAssist  = "assist"
	bindingCluster = "cluster"
)

// controllerOptions are the flags of berth controller.
type controllerOptions struct {
	nodeName string
	poolOptions
	agents agentsOptions

	nfsMounts        []string
	nfsMountPaths    map[nfs.Share]string
	nfsAnswerTimeout time.Duration
	nfsPurgeRate     float64

	binding   string
	bindGrace time.Duration
	workers   int

	nodeLocal nodeLocalOptions

	orphanInterval time.Duration
	orphanGrace    time.Duration

	leaderElect          bool
	leaderElectNamespace string
	leaderElectIdentity  string
	leaseDuration        time.Duration
	renewDeadline        time.Duration
	retryPeriod          time.Duration

	pprofAddress string
	metrics      controllerMetricsOptions
	probeAddress string
	apiQPS       float32
	apiBurst     int

	logging zap.Options
}

func newControllerCommand() *cobra.Command {
	o := controllerOptions{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the controller: make volumes for claims, bind them, and reclaim them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.nodeName, "node-name", "", "name of the Node whose directories this process provisions (single-node install)")
	o.addFlags(f)
	o.agents.addFlags(f)
	o.nodeLocal.addFlags(f)
	f.StringArrayVar(&o.nfsMounts, "nfs-mount", nil, "where an NFS share is mounted, as SERVER:/SHARE=/ABSOLUTE/PATH, for shares that can't be reached without a mount (Kerberos, TLS, RDMA); may be repeated")
	f.DurationVar(&o.nfsAnswerTimeout, "nfs-answer-timeout", nfs.DefaultAnswerTimeout, "how long an NFS server may be silent before its claims are put off")
	f.Float64Var(&o.nfsPurgeRate, "nfs-purge-rate", float64(nfs.DefaultPurgeRate), "how many files a second are removed from the trash of an NFS share")
	f.StringVar(&o.binding, "binding", bindingAssist, "who binds a volume to its claim: assist (Berth does, when kube-controller-manager has not within --bind-grace) or cluster (kube-controller-manager alone)")
	f.DurationVar(&o.bindGrace, "bind-grace", controllers.DefaultBindGrace, "how long kube-controller-manager has to bind a volume before Berth does")
	f.IntVar(&o.workers, "workers", 32, "how many claims, binds and volumes are worked on at a time, of each")
	f.DurationVar(&o.orphanInterval, "orphan-interval", 10*time.Minute, "time between two searches for storage that no volume and no claim knows")
	f.DurationVar(&o.orphanGrace, "orphan-grace", time.Hour, "age from which such storage is removed, when it holds no data, or reported")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "work only while holding a Lease, so that several replicas may run")
	f.StringVar(&o.leaderElectNamespace, "leader-elect-namespace", "", "namespace of the Lease (default: the namespace of the pod)")
	f.StringVar(&o.leaderElectIdentity, "leader-elect-identity", "", "name of this replica in the Lease, which no other process may have at the same time: the pod's. A leader that is killed and started again under the same name goes on at once (default: a new one at each start)")
	f.DurationVar(&o.leaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a Lease that is not renewed is honoured")
	f.DurationVar(&o.renewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long the leader tries to renew the Lease before it stops")
	f.DurationVar(&o.retryPeriod, "leader-elect-retry-period", time.Second, "time between two attempts to get or renew the Lease")
	o.metrics.addFlags(f)
	f.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address to serve /healthz and /readyz on (with ?verbose for more); 0 for none")
	f.StringVar(&o.pprofAddress, "pprof-bind-address", "0", "address to serve profiles on, for example 127.0.0.1:6060; 0 for none")
	f.Float32Var(&o.apiQPS, "kube-api-qps", -1, "client-side limit of requests per second to the API server; negative for none: API priority and fairness protects the server")
	f.IntVar(&o.apiBurst, "kube-api-burst", 0, "burst above --kube-api-qps")

	goFlags := flag.NewFlagSet("", flag.ContinueOnError)
	config.RegisterFlags(goFlags)
	f.AddGoFlagSet(goFlags)
	addLoggingFlags(f, &o.logging)
	return cmd
}

// run wires the manager and runs it until ctx ends.
func (o *controllerOptions) run(ctx context.Context) error {
	setLogger(&o.logging)
	if err := o.validate(); err != nil {
		return err
	}
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	drivers := provisioner.NewRegistry()
	options, err := o.managerOptions(drivers)
	if err != nil {
		return err
	}
	restConfig = o.tune(restConfig)
	if options.LeaderElectionResourceLockInterface, err = o.lock(restConfig); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(restConfig, options)
	if err != nil {
		return fmt.Errorf("create manager: %w", err)
	}
	if err := o.setupMetrics(mgr); err != nil {
		return err
	}
	if err := o.setupDrivers(ctx, mgr, drivers); err != nil {
		return err
	}
	if err := o.setupControllers(ctx, mgr, drivers); err != nil {
		return err
	}
	if err := o.warmCaches(ctx, mgr, drivers); err != nil {
		return err
	}
	if err := o.setupProbes(ctx, mgr, o.agents.reached); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func (o *controllerOptions) validate() error {
	switch {
	case o.binding != bindingAssist && o.binding != bindingCluster:
		return fmt.Errorf("--binding=%q: want %s or %s", o.binding, bindingAssist, bindingCluster)
	case len(o.pools) > 0 && o.nodeName == "":
		return errors.New("--pool needs --node-name: the name of the Node the directories are on")
	case o.workers < 1:
		return fmt.Errorf("--workers=%d: want at least 1", o.workers)
	case o.orphanInterval <= 0:
		return fmt.Errorf("--orphan-interval=%s: want more than 0", o.orphanInterval)
	case o.nfsAnswerTimeout <= 0:
		return fmt.Errorf("--nfs-answer-timeout=%s: want more than 0", o.nfsAnswerTimeout)
	case o.nfsPurgeRate <= 0:
		return fmt.Errorf("--nfs-purge-rate=%g: want more than 0", o.nfsPurgeRate)
	case o.leaderElect && o.leaderElectNamespace == "" && !inCluster():
		return errors.New("--leader-elect outside a pod needs --leader-elect-namespace: the namespace of the Lease; or give --leader-elect=false when this is the only replica")
	case o.bindGrace <= 0:
		return fmt.Errorf("--bind-grace=%s: want more than 0; to leave binding to the cluster use --binding=%s", o.bindGrace, bindingCluster)
	}
	if _, err := o.nodeOptions(o.nodeName, logr.Discard()); err != nil {
		return err
	}
	if err := o.agents.validate(len(o.pools) > 0 || o.nodeName != ""); err != nil {
		return err
	}
	if err := o.nodeLocal.validate(); err != nil {
		return err
	}
	if err := o.metrics.validate(); err != nil {
		return err
	}
	return o.parseMounts()
}

// capacityNamespace is where CSIStorageCapacity objects are; "" when nothing says.
func (o *controllerOptions) capacityNamespace() string {
	return o.nodeLocal.namespace(o.agents.namespace, o.leaderElectNamespace)
}

// inCluster reports whether the process runs in a pod with a service account.
func inCluster() bool {
	_, err := rest.InClusterConfig()
	return err == nil
}

// tune sets how the process talks to the API server: in protobuf, which is
// cheaper for both than JSON.
func (o *controllerOptions) tune(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.QPS, c.Burst = o.apiQPS, o.apiBurst
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.UserAgent = rest.DefaultKubernetesUserAgent()
	return c
}

func (o *controllerOptions) managerOptions(drivers *provisioner.Registry) (manager.Options, error) {
	metricsServer, err := o.metrics.server()
	if err != nil {
		return manager.Options{}, err
	}
	cacheOptions := controllers.CacheOptions(drivers.Serves)
	if o.agents.enabled() {
		o.agents.addToCache(&cacheOptions)
	} else {
		cacheOptions.ByObject[&corev1.Node{}] = cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", o.nodeName)}
	}
	o.nodeLocal.addToCache(&cacheOptions, o.capacityNamespace())
	return manager.Options{
		Cache:                         cacheOptions,
		Metrics:                       metricsServer,
		HealthProbeBindAddress:        "0", // setupProbes tells more
		PprofBindAddress:              o.pprofAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.leaderElectNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &o.leaseDuration,
		RenewDeadline:                 &o.renewDeadline,
		RetryPeriod:                   &o.retryPeriod,
	}, nil
}

// A Lease that is to be created has no name yet for a rule to look at.
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=berth-system,resources=leases,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=berth-system,resources=leases,resourceNames=berth.storage,verbs=get;update

func (o *controllerOptions) setupControllers(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry) error {
	if err := controllers.SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	recorder, err := controllers.NewEventRecorder(mgr)
	if err != nil {
		return err
	}
	series := controllers.NewMetrics(metrics.Registry)
	claims := &controllers.ClaimReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Clock: clock.RealClock{},
	}
	if err := claims.SetupWithManager(mgr, o.workers); err != nil {
		return err
	}
	volumes := &controllers.VolumeReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Clock: clock.RealClock{},
	}
	if err := volumes.SetupWithManager(mgr, o.workers); err != nil {
		return err
	}
	expansions := &controllers.ExpansionReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Metrics: series, Clock: clock.RealClock{},
	}
	if err := expansions.SetupWithManager(mgr, o.workers); err != nil {
		return err
	}
	if err := o.nodeLocal.setup(ctx, mgr, drivers, recorder, series, o.capacityNamespace()); err != nil {
		return err
	}
	if o.binding == bindingAssist {
		binder := &controllers.BindReconciler{
			Client: mgr.GetClient(), Drivers: drivers, Metrics: series, Clock: clock.RealClock{}, Grace: o.bindGrace, Silence: controllers.DefaultBindSilence,
		}
		if err := binder.SetupWithManager(mgr, o.workers); err != nil {
			return err
		}
	}
	census := &controllers.Census{Cache: mgr.GetCache(), Client: mgr.GetClient(), Drivers: drivers, Metrics: series, Clock: clock.RealClock{}}
	if err := census.SetupWithManager(mgr); err != nil {
		return err
	}
	return mgr.Add(&controllers.OrphanSweeper{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Metrics: series, Clock: clock.RealClock{},
		Interval: o.orphanInterval, Grace: o.orphanGrace,
	})
}
