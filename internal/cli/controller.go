package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

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
	nodeName     string
	pools        []string
	poolPaths    map[string]string
	requireMount bool

	nfsMounts        []string
	nfsMountPaths    map[nfs.Share]string
	nfsAnswerTimeout time.Duration
	nfsPurgeRate     float64

	binding   string
	bindGrace time.Duration
	workers   int

	orphanInterval time.Duration
	orphanGrace    time.Duration

	leaderElect          bool
	leaderElectNamespace string
	leaseDuration        time.Duration
	renewDeadline        time.Duration
	retryPeriod          time.Duration

	pprofAddress   string
	metricsAddress string
	probeAddress   string
	apiQPS         float32
	apiBurst       int

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
	f.StringArrayVar(&o.pools, "pool", nil, "a directory to make volumes in, as NAME=/ABSOLUTE/PATH; may be repeated. A StorageClass chooses one by its parameter pool (default \"default\")")
	f.BoolVar(&o.requireMount, "pool-require-mount", false, "refuse pools that are not the root of a mounted filesystem")
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
	f.DurationVar(&o.leaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a Lease that is not renewed is honoured")
	f.DurationVar(&o.renewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long the leader tries to renew the Lease before it stops")
	f.DurationVar(&o.retryPeriod, "leader-elect-retry-period", 2*time.Second, "time between two attempts to get or renew the Lease")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", "127.0.0.1:8080", "address to serve /metrics on; 0 for none")
	f.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "address to serve /healthz and /readyz on; 0 for none")
	f.StringVar(&o.pprofAddress, "pprof-bind-address", "0", "address to serve profiles on, for example 127.0.0.1:6060; 0 for none")
	f.Float32Var(&o.apiQPS, "kube-api-qps", -1, "client-side limit of requests per second to the API server; negative for none: API priority and fairness protects the server")
	f.IntVar(&o.apiBurst, "kube-api-burst", 0, "burst above --kube-api-qps")

	goFlags := flag.NewFlagSet("", flag.ContinueOnError)
	config.RegisterFlags(goFlags)
	o.logging.BindFlags(goFlags)
	f.AddGoFlagSet(goFlags)
	// Errors that are part of the work need no stack traces, and people read
	// these times.
	for name, value := range map[string]string{"zap-stacktrace-level": "panic", "zap-time-encoding": "rfc3339nano"} {
		if err := f.Set(name, value); err != nil {
			panic(err) // the flag or the value is misspelt above
		}
	}
	return cmd
}

// run wires the manager and runs it until ctx ends.
func (o *controllerOptions) run(ctx context.Context) error {
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&o.logging)))
	if err := o.validate(); err != nil {
		return err
	}
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	drivers := provisioner.NewRegistry()
	mgr, err := ctrl.NewManager(o.tune(restConfig), o.managerOptions(drivers))
	if err != nil {
		return fmt.Errorf("create manager: %w", err)
	}
	if err := o.setupDrivers(mgr, drivers); err != nil {
		return err
	}
	if err := o.setupControllers(ctx, mgr, drivers); err != nil {
		return err
	}
	if err := setupProbes(mgr); err != nil {
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
	if err := o.parsePools(); err != nil {
		return err
	}
	return o.parseMounts()
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

func (o *controllerOptions) managerOptions(drivers *provisioner.Registry) manager.Options {
	cacheOptions := controllers.CacheOptions(drivers.Serves)
	cacheOptions.ByObject[&corev1.Node{}] = cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", o.nodeName)}
	return manager.Options{
		Cache:                         cacheOptions,
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.probeAddress,
		PprofBindAddress:              o.pprofAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              "berth.storage",
		LeaderElectionNamespace:       o.leaderElectNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &o.leaseDuration,
		RenewDeadline:                 &o.renewDeadline,
		RetryPeriod:                   &o.retryPeriod,
	}
}

// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=berth-system,resources=leases,verbs=get;create;update

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
	if o.binding == bindingAssist {
		binder := &controllers.BindReconciler{
			Client: mgr.GetClient(), Drivers: drivers, Metrics: series, Clock: clock.RealClock{}, Grace: o.bindGrace,
		}
		if err := binder.SetupWithManager(mgr, o.workers); err != nil {
			return err
		}
	}
	return mgr.Add(&controllers.OrphanSweeper{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Metrics: series, Clock: clock.RealClock{},
		Interval: o.orphanInterval, Grace: o.orphanGrace,
	})
}

func setupProbes(mgr manager.Manager) error {
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("add health check: %w", err)
	}
	synced := func(req *http.Request) error {
		if !mgr.GetCache().WaitForCacheSync(req.Context()) {
			return errors.New("caches are not synced")
		}
		return nil
	}
	if err := mgr.AddReadyzCheck("caches", synced); err != nil {
		return fmt.Errorf("add readiness check: %w", err)
	}
	return nil
}
