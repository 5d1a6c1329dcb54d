package controllers_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/controllers"
	"github.com/berth-storage/berth/provisioner"
)

const (
	deletionFinalizer = "external-provisioner.volume.kubernetes.io/finalizer"
	selectedNodeKey   = "volume.kubernetes.io/selected-node"
	provisionedByKey  = "pv.kubernetes.io/provisioned-by"
	defaultClassKey   = "storageclass.kubernetes.io/is-default-class"

	// quiet is how long something must not happen for a test to believe that it
	// does not.
	quiet = 1500 * time.Millisecond
)

var scopes atomic.Int64

// scope is what a test has for itself: a namespace, a class name and a driver
// name, all alike, and a client with every right.
type scope struct {
	*gomega.WithT
	t      *testing.T
	client client.Client
	name   string
}

func newScope(t *testing.T) *scope {
	t.Helper()
	cp := sharedControlPlane(t)
	c, err := client.New(cp.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &scope{WithT: gomega.NewWithT(t), t: t, client: c, name: fmt.Sprintf("scope-%d", scopes.Add(1))}
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}})
	return s
}

// driverName is the provisioner of the scope's classes.
func (s *scope) driverName() string { return s.name + ".example.com" }

// berthOptions say how a manager differs from the usual.
type berthOptions struct {
	config     *rest.Config // of whom it acts as
	newClient  client.NewClientFunc
	noBinder   bool
	bindGrace  time.Duration
	silence    time.Duration // of a kube-controller-manager that is taken for dead
	sweepEvery time.Duration
	sweepGrace time.Duration
	clock      clock.WithDelayedExecution

	capacity   *controllers.CapacityPublisher // what of it is not wired; nil for none
	noCapacity bool                           // remove what was published
	lostGrace  time.Duration                  // 0: deleted nodes are nobody's business
}

// berth is a running manager.
type berth struct {
	metrics *prometheus.Registry
	stop    func()
}

// run starts a manager with Berth's reconcilers and driver, wired as
// internal/cli wires them, and stops it when the test ends.
func (s *scope) run(driver libcontroller.Provisioner, edits ...func(*berthOptions)) *berth {
	s.t.Helper()
	o := berthOptions{bindGrace: controllers.DefaultBindGrace, silence: controllers.DefaultBindSilence, clock: clock.RealClock{}}
	for _, edit := range edits {
		edit(&o)
	}
	if o.config == nil {
		c, err := sharedControlPlane(s.t).User(berthUser, "system:masters")
		s.ok(err)
		o.config = c
	}
	o.config.ContentType = "application/vnd.kubernetes.protobuf"
	o.config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	drivers := provisioner.NewRegistry()
	s.ok(drivers.Register(s.driverName(), driver))
	cacheOptions := controllers.CacheOptions(drivers.Serves)
	cacheOptions.ByObject[&storagev1.CSIStorageCapacity{}] = controllers.CapacityCache(s.name)
	mgr, err := ctrl.NewManager(o.config, manager.Options{
		Cache:                  cacheOptions,
		NewClient:              o.newClient,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		Controller:             config.Controller{SkipNameValidation: ptr.To(true)},
	})
	s.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	registry := prometheus.NewRegistry()
	series := controllers.NewMetrics(registry)
	s.ok(setup(ctx, mgr, drivers, series, o))
	s.ok(setupNodeLocal(ctx, mgr, drivers, series, s.name, o))

	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	b := &berth{metrics: registry, stop: func() {
		cancel()
		if err, ok := <-ended; ok && err != nil {
			s.t.Errorf("manager: %v", err)
		}
		close(ended)
	}}
	b.stop = onceOnly(b.stop)
	s.t.Cleanup(b.stop)
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		s.t.Fatal("the caches did not sync")
	}
	return b
}

func onceOnly(f func()) func() {
	var done atomic.Bool
	return func() {
		if done.CompareAndSwap(false, true) {
			f()
		}
	}
}

func setup(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry, series *controllers.Metrics, o berthOptions) error {
	const workers = 8
	recorder, err := controllers.NewEventRecorder(mgr)
	if err != nil {
		return err
	}
	claims := &controllers.ClaimReconciler{Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Clock: o.clock}
	volumes := &controllers.VolumeReconciler{Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Clock: o.clock}
	expansions := &controllers.ExpansionReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Metrics: series, Clock: o.clock,
	}
	errs := []error{
		expansions.SetupWithManager(mgr, workers),
		controllers.SetupIndexes(ctx, mgr.GetFieldIndexer()),
		claims.SetupWithManager(mgr, workers),
		volumes.SetupWithManager(mgr, workers),
		(&controllers.Census{Cache: mgr.GetCache(), Client: mgr.GetClient(), Drivers: drivers, Metrics: series, Clock: o.clock}).SetupWithManager(mgr),
	}
	if !o.noBinder {
		binder := &controllers.BindReconciler{Client: mgr.GetClient(), Drivers: drivers, Metrics: series, Clock: o.clock, Grace: o.bindGrace, Silence: o.silence}
		errs = append(errs, binder.SetupWithManager(mgr, workers))
	}
	if o.sweepEvery > 0 {
		errs = append(errs, mgr.Add(&controllers.OrphanSweeper{
			Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Metrics: series,
			Clock: clock.RealClock{}, Interval: o.sweepEvery, Grace: o.sweepGrace,
		}))
	}
	return errors.Join(errs...)
}

// setupNodeLocal adds what only drivers with volumes on nodes need.
func setupNodeLocal(ctx context.Context, mgr manager.Manager, drivers *provisioner.Registry, series *controllers.Metrics, namespace string, o berthOptions) error {
	if p := o.capacity; p != nil {
		p.Client, p.APIReader, p.Drivers, p.Namespace = mgr.GetClient(), mgr.GetAPIReader(), drivers, namespace
		p.Metrics, p.Clock = series, clock.RealClock{}
		if err := p.SetupWithManager(ctx, mgr); err != nil {
			return err
		}
	}
	if o.noCapacity {
		remover := &controllers.CapacityRemover{Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Namespace: namespace, Clock: clock.RealClock{}}
		if err := mgr.Add(remover); err != nil {
			return err
		}
	}
	if o.lostGrace == 0 {
		return nil
	}
	recorder, err := controllers.NewEventRecorder(mgr)
	if err != nil {
		return err
	}
	pools := &controllers.PoolWatcher{
		Client: mgr.GetClient(), Drivers: drivers, Events: recorder, Metrics: series, Clock: clock.RealClock{}, Interval: 100 * time.Millisecond,
	}
	if err := mgr.Add(pools); err != nil {
		return err
	}
	lost := &controllers.LostNodeReconciler{
		Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Drivers: drivers, Events: recorder, Metrics: series, Clock: o.clock, Grace: o.lostGrace,
	}
	return lost.SetupWithManager(ctx, mgr)
}

// metric returns the value of a counter or gauge, and the number of
// observations of a histogram, over all its labels.
func (b *berth) metric(name string) float64 {
	families, err := b.metrics.Gather()
	if err != nil {
		return -1
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func (s *scope) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scope) create(o client.Object) {
	s.t.Helper()
	s.ok(s.client.Create(s.t.Context(), o))
}

// class creates a class of the scope's driver and name: Immediate, Delete,
// unless edits say otherwise.
func (s *scope) class(edits ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	s.t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: s.name, Annotations: map[string]string{}},
		Provisioner:       s.driverName(),
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate),
	}
	for _, edit := range edits {
		edit(class)
	}
	s.create(class)
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), class) })
	return class
}

func waitForConsumer(c *storagev1.StorageClass) {
	c.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
}

func retain(c *storagev1.StorageClass) {
	c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimRetain)
}

// claim creates a claim of 1Gi in the scope's class, changed by edits.
func (s *scope) claim(name string, edits ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	s.t.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name, Annotations: map[string]string{}, Labels: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &s.name,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: sized("1Gi")},
		},
	}
	for _, edit := range edits {
		edit(claim)
	}
	s.create(claim)
	return claim
}

func sized(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

// staticVolume creates an Available volume that fits the scope's claims, and
// waits until it is.
func (s *scope) staticVolume(name string, changes ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	s.t.Helper()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      sized("1Gi"),
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName:              s.name,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/static/" + name}},
		},
	}
	for _, change := range changes {
		change(volume)
	}
	s.create(volume)
	return volume
}

// get reads o anew, and reports whether it exists.
func (s *scope) get(o client.Object) bool {
	s.t.Helper()
	err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) {
		return false
	}
	s.ok(err)
	return true
}

// patch changes o, which it reads first, by edit.
func patch[T client.Object](s *scope, o T, edit func(T)) {
	s.t.Helper()
	s.ok(tryPatch(s, o, edit))
}

// tryPatch is patch for what the API server may refuse.
func tryPatch[T client.Object](s *scope, o T, edit func(T)) error {
	s.t.Helper()
	if !s.get(o) {
		s.t.Fatalf("%T %s is gone", o, o.GetName())
	}
	before := o.DeepCopyObject().(client.Object)
	edit(o)
	return s.client.Patch(s.t.Context(), o, client.MergeFrom(before))
}

func (s *scope) delete(o client.Object) {
	s.t.Helper()
	s.ok(client.IgnoreNotFound(s.client.Delete(s.t.Context(), o)))
}

func annotate(key, value string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[key] = value
	}
}

// triggered gives a claim what kube-controller-manager would write into it, for
// tests that count what a change of the claim brings about.
func (s *scope) triggered(c *corev1.PersistentVolumeClaim) {
	annotate("volume.kubernetes.io/storage-provisioner", s.driverName())(c)
	annotate("volume.beta.kubernetes.io/storage-provisioner", s.driverName())(c)
}

// expectBound waits until claim and a volume are Bound to each other, and
// returns the volume.
func (s *scope) expectBound(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	s.t.Helper()
	volume := &corev1.PersistentVolume{}
	s.Eventually(func() string {
		if !s.get(claim) {
			return "no claim"
		}
		volume.Name = claim.Spec.VolumeName
		if claim.Status.Phase != corev1.ClaimBound || volume.Name == "" || !s.get(volume) {
			return "claim " + string(claim.Status.Phase)
		}
		return "claim Bound, volume " + string(volume.Status.Phase)
	}).Should(gomega.Equal("claim Bound, volume Bound"))
	return volume
}

func (s *scope) expectGone(o client.Object) {
	s.t.Helper()
	s.Eventually(func() bool { return s.get(o) }).Should(gomega.BeFalse(), "%T %s is still there", o, o.GetName())
}

// volumes returns the names of all volumes in the scope's class.
func (s *scope) volumes() []string {
	s.t.Helper()
	var list corev1.PersistentVolumeList
	s.ok(s.client.List(s.t.Context(), &list))
	var names []string
	for _, v := range list.Items {
		if v.Spec.StorageClassName == s.name {
			names = append(names, v.Name)
		}
	}
	return names
}

// expectNothingLeft waits until there is no volume in the scope's class and no
// storage in driver.
func (s *scope) expectNothingLeft(driver *memoryDriver) {
	s.t.Helper()
	s.Eventually(s.volumes).Should(gomega.BeEmpty())
	s.Eventually(driver.Stored).Should(gomega.BeEmpty())
}

// events returns the notes of Berth's events about o, by "Type Reason"; one
// that was repeated n times is there n times.
func (s *scope) events(o client.Object) map[string][]string {
	s.t.Helper()
	var list eventsv1.EventList
	namespace := cmp.Or(o.GetNamespace(), metav1.NamespaceDefault)
	s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(namespace)))
	notes := map[string][]string{}
	for _, e := range list.Items {
		if e.ReportingController != "berth" || e.Regarding.UID != o.GetUID() {
			continue
		}
		times := max(1, int(e.DeprecatedCount)) // the count of a core event
		if e.Series != nil {
			times = int(e.Series.Count)
		}
		for range times {
			notes[e.Type+" "+e.Reason] = append(notes[e.Type+" "+e.Reason], e.Note)
		}
	}
	return notes
}

// expectEvent waits for an event about o whose note contains text.
func (s *scope) expectEvent(o client.Object, kind, text string) {
	s.t.Helper()
	s.Eventually(func() string { return strings.Join(s.events(o)[kind], "\n") }).Should(gomega.ContainSubstring(text), "event %s about %s", kind, o.GetName())
}

// reasons returns the kinds of Berth's events about o.
func (s *scope) reasons(o client.Object) map[string]int {
	s.t.Helper()
	counts := map[string]int{}
	for kind, notes := range s.events(o) {
		counts[kind] = len(notes)
	}
	return counts
}
