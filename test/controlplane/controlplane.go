// Package controlplane runs a real Kubernetes control plane as child processes:
// etcd, kube-apiserver and, when asked for, kube-controller-manager and
// kube-scheduler. Tests, benchmarks and the development cluster use it.
//
// It exists beside envtest, which starts only the first two: what Berth does is half
// of a conversation with kube-controller-manager, which binds volumes to claims
// and marks claims lost, and with kube-scheduler, which picks nodes. envtest starts and
// configures etcd and kube-apiserver here as well, with its test-only defaults
// taken back: admission plugins, authorizers and API priority and fairness are
// those of a production cluster. What remains different is in the documentation of [Start].
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	controllerManagerName = "kube-controller-manager"
	schedulerName         = "kube-scheduler"
)

// Options say which control plane to start. The zero value is a working one of
// etcd and kube-apiserver.
type Options struct {
	// AssetsDir is the folder with the binaries. When it is "", FindAssets
	// looks for one.
	AssetsDir string

	// Dir keeps state and logs; Start creates it, and removes what an earlier
	// control plane has left in it: every start is a new cluster. Two control
	// planes must not share it. When it is "", a temporary folder is used, which Stop
	// removes.
	Dir string

	// Address is the IP address the API server listens on and its certificate
	// names; "" means 127.0.0.1. The other components listen on 127.0.0.1.
	Address string

	// Port is the one the API server listens on; 0 means a free one.
	Port int

	// ControllerManager and Scheduler say whether to start kube-controller-manager
	// and kube-scheduler. The ServiceAccount admission plugin is on only beside
	// kube-controller-manager, as nobody else creates service accounts.
	ControllerManager, Scheduler bool

	// APIServerArgs, ControllerManagerArgs and SchedulerArgs are further arguments of the
	// form --name=value or --name. An argument here replaces the default
	// of the same name.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string

	// AuditPolicy is an audit policy in YAML. When it is not "", the API server logs
	// requests accordingly to the file that AuditLogPath returns.
	AuditPolicy string

	// Output receives a line whenever a component is ready; nil for none.
	Output io.Writer
}

// ControlPlane is a running control plane. Its methods are safe for concurrent
// use.
type ControlPlane struct {
	dir       string
	temporary bool
	reaper    *reaper
	env       *envtest.ControlPlane
	admin     *rest.Config

	controllerManager, scheduler *Process

	output   sync.Mutex // guards Output
	users    sync.Mutex // guards envtest's certificate authority, which counts without a lock
	stopOnce sync.Once
	stopErr  error
	options  Options
}

// Start starts a control plane and returns when all of it works. ctx bounds the
// start only: the control plane runs until Stop is called or this process ends,
// in whatever way. When a component does not come up, the error holds the end of
// its log and nothing is left running.
//
// It differs from a cluster made by kubeadm in these points:
//   - etcd does not wait for the disk (--unsafe-no-fsync), so writes are faster
//     than on a production cluster and lost when the machine crashes.
//   - Each component is a single instance without leader election.
//   - The Service "kubernetes" has no endpoints, since pods could not
//     reach a loopback address; this also lets the API server start on a machine
//     without any network.
//   - No certificate signing controller and no aggregated API servers, as neither is
//     given a certificate authority.
//   - There are no nodes, other than those the caller adds.
func Start(ctx context.Context, o Options) (*ControlPlane, error) {
	for _, flags := range [][]string{o.APIServerArgs, o.ControllerManagerArgs, o.SchedulerArgs} {
		if err := checkFlags(flags); err != nil {
			return nil, err
		}
	}
	assets, err := resolveAssets(o.AssetsDir)
	if err != nil {
		return nil, err
	}
	o.AssetsDir = assets
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	c := &ControlPlane{options: o}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// Config returns a configuration for clients with every right. Client-side
// throttling is off; set QPS in the returned copy to have it.
func (c *ControlPlane) Config() *rest.Config {
	return rest.CopyConfig(c.admin)
}

// User returns a configuration for clients that act as the named user, member of
// the groups given. The user has no rights but those that RBAC objects grant to
// its name and groups. Client-side throttling is off, as in Config.
func (c *ControlPlane) User(name string, groups ...string) (*rest.Config, error) {
	c.users.Lock()
	defer c.users.Unlock()
	user, err := c.env.AddUser(envtest.User{Name: name, Groups: groups}, &rest.Config{QPS: -1})
	if err != nil {
		return nil, err
	}
	return rest.CopyConfig(user.Config()), nil
}

// WriteKubeconfig writes a kubeconfig file for a user as User describes.
func (c *ControlPlane) WriteKubeconfig(path, user string, groups ...string) error {
	config, err := c.User(user, groups...)
	if err != nil {
		return err
	}
	const name = "berth"
	return clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: name,
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: user}},
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server:                   strings.TrimSuffix(config.Host, "/"),
			CertificateAuthorityData: config.CAData,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{user: {
			ClientCertificateData: config.CertData,
			ClientKeyData:         config.KeyData,
		}},
	}, path)
}

// ControllerManager returns the process of kube-controller-manager, nil when
// Options did not ask for it.
func (c *ControlPlane) ControllerManager() *Process {
	return c.controllerManager
}

// Scheduler returns the process of kube-scheduler, nil when Options did not ask
// for it.
func (c *ControlPlane) Scheduler() *Process {
	return c.scheduler
}

// AuditLogPath returns the audit log for ReadAudit, "" when Options set no
// policy.
func (c *ControlPlane) AuditLogPath() string {
	if c.options.AuditPolicy == "" {
		return ""
	}
	return c.logPath("audit")
}

// Dir returns the folder of state and logs.
func (c *ControlPlane) Dir() string {
	return c.dir
}

// Stop ends every component at once, clients' watches with them, and removes the state and the logs unless Options
// named a folder for them. Calls after the first return what the first returned.
func (c *ControlPlane) Stop() error {
	c.stopOnce.Do(func() { c.stopErr = c.stop() })
	return c.stopErr
}

func resolveAssets(dir string) (string, error) {
	if dir == "" {
		return FindAssets()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, CheckAssets(dir)
}

func (c *ControlPlane) start(ctx context.Context) error {
	if err := c.makeFolders(); err != nil {
		return err
	}
	if err := c.startAPI(ctx); err != nil {
		return err
	}
	admin, err := c.User("admin", "system:masters")
	if err != nil {
		return err
	}
	c.admin = admin
	return c.startOthers(ctx)
}

// makeFolders lays out an empty state folder and starts the watch over it.
func (c *ControlPlane) makeFolders() error {
	var err error
	temporary := ""
	if c.options.Dir == "" {
		c.temporary = true
		c.dir, err = os.MkdirTemp("", "berth-control-plane-")
		temporary = c.dir
	} else {
		c.dir, err = filepath.Abs(c.options.Dir)
	}
	if err != nil {
		return err
	}
	for _, name := range []string{"etcd", "pki", "logs", "run", "conf"} {
		if err := os.RemoveAll(c.path(name)); err != nil {
			return err
		}
		if err := os.MkdirAll(c.path(name), 0o750); err != nil {
			return err
		}
	}
	c.reaper, err = startReaper(c.path("run"), temporary)
	return err
}

// startAPI starts etcd and kube-apiserver through envtest.
func (c *ControlPlane) startAPI(ctx context.Context) error {
	c.env = &envtest.ControlPlane{
		Etcd:      &envtest.Etcd{DataDir: c.path("etcd"), StartTimeout: startTimeout, StopTimeout: stopTimeout},
		APIServer: &envtest.APIServer{CertDir: c.path("pki"), StartTimeout: startTimeout, StopTimeout: stopTimeout},
	}
	etcd, api := c.env.Etcd, c.env.APIServer
	if err := c.configureAPIServer(ctx, api); err != nil {
		return err
	}
	if err := c.launch(ctx, "etcd", &etcd.Path, &etcd.Out, &etcd.Err, etcd.Start); err != nil {
		return err
	}
	api.EtcdURL = etcd.URL
	return c.launch(ctx, "kube-apiserver", &api.Path, &api.Out, &api.Err, api.Start)
}

// launch starts a component of envtest's, which knows no context.
func (c *ControlPlane) launch(ctx context.Context, name string, path *string, stdout, stderr *io.Writer, start func() error) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	began := time.Now()
	launcher, err := c.reaper.launcher(filepath.Join(c.options.AssetsDir, name))
	if err != nil {
		return err
	}
	log, err := os.Create(c.logPath(name))
	if err != nil {
		return err
	}
	defer log.Close()
	*path, *stdout, *stderr = launcher, log, log

	abandon := context.AfterFunc(ctx, func() { c.reaper.kill(name) })
	err = start()
	abandon()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w%s", name, err, LogTail(c.logPath(name)))
	}
	c.note("%s ready after %.1fs", name, time.Since(began).Seconds())
	return nil
}

// configureAPIServer makes of envtest's API server a production one.
func (c *ControlPlane) configureAPIServer(ctx context.Context, api *envtest.APIServer) error {
	port := c.options.Port
	if port == 0 {
		var err error
		if port, err = freePort(ctx, c.options.Address); err != nil {
			return err
		}
	}
	api.ListenAddr = envtest.ListenAddr{Address: c.options.Address, Port: strconv.Itoa(port)}
	flags := []string{
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--advertise-address=" + c.options.Address,
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16",
	}
	if c.options.AuditPolicy != "" {
		policy := c.path("conf", "audit-policy.yaml")
		if err := os.WriteFile(policy, []byte(c.options.AuditPolicy), 0o600); err != nil {
			return err
		}
		// Rotation would take events from under a reader.
		flags = append(flags, "--audit-policy-file="+policy, "--audit-log-path="+c.logPath("audit"), "--audit-log-maxsize=0")
	}
	args := api.Configure()
	if c.options.ControllerManager {
		args.Disable("disable-admission-plugins") // envtest disables ServiceAccount
	}
	values := map[string][]string{}
	for _, flag := range mergeFlags(flags, c.options.APIServerArgs) {
		name, value, hasValue := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if !hasValue {
			value = "true"
		}
		values[name] = append(values[name], value)
		args.Set(name, values[name]...)
	}
	return nil
}

// startOthers starts kube-controller-manager and kube-scheduler side by side.
func (c *ControlPlane) startOthers(ctx context.Context) error {
	var starts []func(context.Context) error
	if c.options.ControllerManager {
		p, err := c.newControllerManager()
		if err != nil {
			return err
		}
		c.controllerManager = p
		starts = append(starts, p.Start)
	}
	if c.options.Scheduler {
		p, err := c.newScheduler()
		if err != nil {
			return err
		}
		c.scheduler = p
		starts = append(starts, p.Start)
	}
	errs := make([]error, len(starts))
	var all sync.WaitGroup
	for i, start := range starts {
		all.Go(func() { errs[i] = start(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (c *ControlPlane) newControllerManager() (*Process, error) {
	root := c.path("pki", "ca.crt")
	if err := os.WriteFile(root, c.env.APIServer.CA, 0o600); err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return nil, err
	}
	p, err := c.newProcess(controllerManagerName, []string{
		"--enable-hostpath-provisioner=false",
		"--root-ca-file=" + root,
		"--service-account-private-key-file=" + c.path("pki", "sa-signer.key"),
		"--use-service-account-credentials=true",
	}, c.options.ControllerManagerArgs)
	if err != nil {
		return nil, err
	}
	// Its health endpoint passes at once, then lists the controllers when there are any.
	p.health, p.healthy = "/healthz?verbose", "-controller ok"
	p.ready = func(ctx context.Context) error {
		return poll(ctx, func() error {
			_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err
		})
	}
	return p, nil
}

func (c *ControlPlane) newScheduler() (*Process, error) {
	p, err := c.newProcess(schedulerName, nil, c.options.SchedulerArgs)
	if err != nil {
		return nil, err
	}
	p.health, p.healthy = "/readyz", "ok"
	return p, nil
}

// newProcess prepares a component that talks to the API server as the user that
// Kubernetes' default RBAC roles are bound to.
func (c *ControlPlane) newProcess(name string, flags, overrides []string) (*Process, error) {
	launcher, err := c.reaper.launcher(filepath.Join(c.options.AssetsDir, name))
	if err != nil {
		return nil, err
	}
	kubeconfig := c.path("conf", name+".kubeconfig")
	if err := c.WriteKubeconfig(kubeconfig, "system:"+name); err != nil {
		return nil, err
	}
	flags = append(flags,
		"--kubeconfig="+kubeconfig,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--leader-elect=false",
	)
	return &Process{
		name:    name,
		binary:  launcher,
		args:    mergeFlags(flags, overrides),
		certDir: c.path("pki", name),
		logPath: c.logPath(name),
		reaper:  c.reaper,
		note:    c.note,
	}, nil
}

func (c *ControlPlane) stop() error {
	var errs []error
	for _, p := range []*Process{c.scheduler, c.controllerManager} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	if c.env != nil {
		errs = append(errs, c.abandon("kube-apiserver", c.env.APIServer.Stop), c.abandon("etcd", c.env.Etcd.Stop))
	}
	if c.reaper != nil {
		errs = append(errs, c.reaper.stop())
	}
	if c.temporary {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// abandon ends a component of envtest's without giving it time: the API server
// would wait a minute for clients to end their watches, and its state is thrown away.
func (c *ControlPlane) abandon(name string, stop func() error) error {
	c.reaper.kill(name)
	// envtest does not expect that the process may be gone already.
	if err := stop(); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	c.reaper.forget(name)
	return nil
}

func (c *ControlPlane) path(elements ...string) string {
	return filepath.Join(append([]string{c.dir}, elements...)...)
}

func (c *ControlPlane) logPath(name string) string {
	return c.path("logs", name+".log")
}

func (c *ControlPlane) note(format string, args ...any) {
	if c.options.Output == nil {
		return
	}
	c.output.Lock()
	defer c.output.Unlock()
	fmt.Fprintf(c.options.Output, format+"\n", args...)
}
