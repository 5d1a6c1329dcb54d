package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

// This file has a claim grow while everything that can come between does: between
// any two requests of the reconciler to the API server or to the driver its owner
// asks for more, or less, or writes an annotation; the process dies; another
// process does the same work; the claim is deleted; the driver answers, or does
// what it is asked without an answer, or refuses. Every combination of up to
// maxDeviations such things is tried.

const maxDeviations = 2

const gi = int64(1) << 30

// errCrash ends a reconciliation where it is.
var errCrash = errors.New("crash")

// deviation is something that comes between, with a name for messages.
type deviation struct {
	name string
	do   func()
}

// interleaving is one run. script says which deviation happens at each place where
// one can; 0 is none, and so is what is beyond its end.
type interleaving struct {
	t        *testing.T
	script   []int
	widths   []int    // how many there were to choose from, at each place
	happened []string // for messages

	claim    *corev1.PersistentVolumeClaim
	volume   *corev1.PersistentVolume
	recovers bool  // whether the API server has RecoverVolumeExpansionFailure
	counted  bool  // whether nothing may ever be uncounted, or only in the end
	disk     int64 // what the driver's disk lets the volume have
	quiet    bool  // nothing comes between
	leader   reconcile.Reconciler
	metrics  *Metrics
	clock    *clocktesting.FakeClock
}

// start is a state that claim, volume and disk are found in.
type interleavingStart struct {
	request, claim, volume, disk int64
	refused                      bool // what is asked for was, once
	mayBeUncounted               bool
}

var interleavingStarts = map[string]interleavingStart{
	"a claim asks for more": {request: 4, claim: 1, volume: 1, disk: 1},
	"it was refused once":   {request: 4, claim: 1, volume: 1, disk: 1, refused: true},
	// As the releases that wrote nothing into status.allocatedResources leave it.
	"an earlier release died before it wrote the claim":  {request: 4, claim: 1, volume: 4, disk: 4, mayBeUncounted: true},
	"an earlier release died before it wrote the volume": {request: 4, claim: 1, volume: 1, disk: 4, mayBeUncounted: true},
	"a tenant asked for less of an earlier release":      {request: 2, claim: 1, volume: 4, disk: 4, mayBeUncounted: true},
	"and that died before it wrote the volume":           {request: 2, claim: 1, volume: 1, disk: 4, mayBeUncounted: true},
}

func TestNoOrderOfEventsLetsAVolumeHaveMoreThanIsCounted(t *testing.T) {
	t.Parallel()
	for name, start := range interleavingStarts {
		for _, recovers := range []bool{true, false} {
			if !recovers && (start.refused || start.request < start.disk) {
				continue // an API server without the feature has no such claim
			}
			t.Run(fmt.Sprintf("%s/recovers=%t", strings.ReplaceAll(name, " ", "-"), recovers), func(t *testing.T) {
				t.Parallel()
				runs, metrics := 0, NewMetrics(prometheus.NewRegistry())
				explore(nil, 0, func(script []int) []int {
					runs++
					i := newInterleaving(t, start)
					i.script, i.recovers, i.metrics = script, recovers, metrics
					return i.run()
				})
				t.Logf("%d orders", runs)
			})
		}
	}
}

// explore calls run with every script of at most maxDeviations deviations that
// begins with prefix.
func explore(prefix []int, deviations int, run func(script []int) (widths []int)) {
	widths := run(prefix)
	if deviations == maxDeviations {
		return
	}
	for place := len(prefix); place < len(widths); place++ {
		for choice := 1; choice < widths[place]; choice++ {
			script := append(slices.Clone(prefix), make([]int, place-len(prefix)+1)...)
			script[place] = choice
			explore(script, deviations+1, run)
		}
	}
}

func newInterleaving(t *testing.T, start interleavingStart) *interleaving {
	t.Helper()
	i := &interleaving{
		t: t, counted: !start.mayBeUncounted, disk: start.disk * gi, clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)),
		claim: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "uid", ResourceVersion: "1"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "volume", Resources: corev1.VolumeResourceRequirements{Requests: gibibytes(start.request)}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: gibibytes(start.claim)},
		},
		volume: &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "volume", UID: "volume-uid", ResourceVersion: "1", Annotations: map[string]string{volumehelpers.AnnDynamicallyProvisioned: "driver"}},
			Spec:       corev1.PersistentVolumeSpec{Capacity: gibibytes(start.volume), ClaimRef: &corev1.ObjectReference{UID: "uid"}},
			Status:     corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		},
	}
	if start.refused {
		i.claim.Status.AllocatedResources = gibibytes(start.request)
		i.claim.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{
			corev1.ResourceStorage: corev1.PersistentVolumeClaimControllerResizeInfeasible,
		}
	}
	return i
}

func gibibytes(n int64) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(n*gi, resource.BinarySI)}
}

// run has the claim reconciled, disturbed at first and then in quiet, and returns
// how many deviations there were to choose from at each place.
func (i *interleaving) run() []int {
	i.leader = i.newReconciler(true)
	for range 3 {
		i.reconcile(i.leader)
	}
	i.quiet = true
	for range 4 {
		i.reconcile(i.leader)
	}
	i.checkEnd()
	return i.widths
}

// reconcile reconciles once, as late as the reconciler wants it.
func (i *interleaving) reconcile(r reconcile.Reconciler) {
	defer func() {
		if r := recover(); r != nil && r != errCrash { //nolint:errorlint // the very value
			panic(r)
		}
	}()
	i.clock.Step(time.Hour)
	_, _ = r.Reconcile(i.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns", Name: "claim"}})
}

// newReconciler returns one as a process has it that has just begun to lead.
// Nothing comes between the requests of one that is not disturbed.
func (i *interleaving) newReconciler(disturbed bool) *ExpansionReconciler {
	before := func() {}
	if disturbed {
		before = func() { i.between(i.disturbances()...) }
	}
	drivers := provisioner.NewRegistry()
	if err := drivers.Register("driver", &interleavingDriver{i, before, disturbed}); err != nil {
		i.t.Fatal(err)
	}
	api := &interleavedClient{interleaving: i, before: before}
	return &ExpansionReconciler{
		Client: api, APIReader: &interleavedReader{api}, Drivers: drivers, Events: noEvents{}, Metrics: i.metrics,
		Clock: i.clock, infeasible: newInfeasibleClaims(i.clock, maxRetry),
	}
}

// between has the deviation happen that the script has for this place.
func (i *interleaving) between(deviations ...deviation) {
	if i.quiet {
		return
	}
	place := len(i.widths)
	i.widths = append(i.widths, len(deviations)+1)
	if place >= len(i.script) || i.script[place] == 0 {
		return
	}
	d := deviations[i.script[place]-1]
	i.happened = append(i.happened, fmt.Sprintf("%d: %s", place, d.name))
	d.do()
	i.check()
}

func (i *interleaving) disturbances() []deviation {
	return []deviation{
		{"2Gi is asked for", func() { i.ask(2) }},
		{"6Gi is asked for", func() { i.ask(6) }},
		{"an annotation", func() {
			i.edit(func(c *corev1.PersistentVolumeClaim) {
				c.Annotations = map[string]string{"place": fmt.Sprint(len(i.widths))}
			})
		}},
		{"crash", func() {
			i.leader = i.newReconciler(true)
			panic(errCrash)
		}},
		{"another leader", func() { i.reconcile(i.newReconciler(false)) }},
		{"the claim is deleted", func() {
			i.edit(func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{Time: i.clock.Now()} })
		}},
	}
}

// ask asks for a size, which the API server may refuse (ValidatePersistentVolumeClaimUpdate).
func (i *interleaving) ask(size int64) {
	i.edit(func(c *corev1.PersistentVolumeClaim) {
		wanted := gibibytes(size)
		if less := compareSizes(wanted, c.Spec.Resources.Requests) < 0; less && (!i.recovers || compareSizes(wanted, c.Status.Capacity) <= 0) {
			return
		}
		c.Spec.Resources.Requests = wanted
	})
}

// edit changes the claim as the API server does, which makes a new version of it.
func (i *interleaving) edit(edit func(*corev1.PersistentVolumeClaim)) {
	edit(i.claim)
	next(&i.claim.ObjectMeta)
}

func next(m *metav1.ObjectMeta) { m.ResourceVersion += "1" }

// check fails when the claim or its volume say more than there is, or quotas count
// less.
func (i *interleaving) check() {
	i.t.Helper()
	claim, volume := i.claim, i.volume
	if has := volume.Spec.Capacity.Storage().Value(); has > i.disk {
		i.fail("the volume says %d, and has %d", has/gi, i.disk/gi)
	}
	if has := claim.Status.Capacity.Storage().Value(); has > i.disk {
		i.fail("the claim says %d, and has %d", has/gi, i.disk/gi)
	}
	if counts := quotaCounts(claim); i.counted && counts < i.disk && claim.DeletionTimestamp == nil {
		i.fail("quotas count %d, and the volume has %d", counts/gi, i.disk/gi)
	}
}

// quotaCounts is what quotas count of claim (kubernetes
// pkg/quota/v1/evaluator/core/persistent_volume_claims.go, getStorageUsage).
func quotaCounts(claim *corev1.PersistentVolumeClaim) int64 {
	return max(claim.Spec.Resources.Requests.Storage().Value(), claim.Status.AllocatedResources.Storage().Value())
}

// checkEnd fails unless the claim has what it asks for, and everybody agrees.
func (i *interleaving) checkEnd() {
	i.t.Helper()
	claim, volume := i.claim, i.volume
	if claim.DeletionTimestamp != nil {
		return
	}
	i.counted = true
	i.check()
	wanted, has := claim.Spec.Resources.Requests.Storage().Value(), claim.Status.Capacity.Storage().Value()
	if has < wanted || has != volume.Spec.Capacity.Storage().Value() || has != i.disk {
		i.fail("%d is asked for, the claim has %d, the volume %d, the disk %d", wanted/gi, has/gi, volume.Spec.Capacity.Storage().Value()/gi, i.disk/gi)
	}
	if len(claim.Status.AllocatedResourceStatuses) > 0 || len(claim.Status.Conditions) > 0 {
		i.fail("the claim says that it is not over: %v, %v", claim.Status.AllocatedResourceStatuses, claim.Status.Conditions)
	}
	if i.recovers && i.disk > 0 && claim.Status.AllocatedResources.Storage().Value() > i.disk {
		i.fail("%s is allocated, and the volume has %d", claim.Status.AllocatedResources.Storage(), i.disk/gi)
	}
}

func (i *interleaving) fail(format string, args ...any) {
	i.t.Helper()
	i.t.Fatalf("%s\nafter %s", fmt.Sprintf(format, args...), strings.Join(i.happened, ", "))
}

// interleavingDriver is the driver of a run.
type interleavingDriver struct {
	*interleaving
	before    func()
	disturbed bool
}

func (*interleavingDriver) Provision(context.Context, libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	return nil, libcontroller.ProvisioningFinished, errors.ErrUnsupported
}

func (*interleavingDriver) Delete(context.Context, *corev1.PersistentVolume) error {
	return errors.ErrUnsupported
}

// Expand implements provisioner.Expander.
func (d *interleavingDriver) Expand(_ context.Context, _ *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	d.before()
	i := d.interleaving
	grant, err := true, error(nil)
	if d.disturbed {
		answers := func(name string, does bool, answer error) deviation {
			return deviation{name, func() { grant, err = does, answer }}
		}
		d.between(
			answers("done, without an answer", true, status.Error(codes.DeadlineExceeded, "no answer")),
			answers("not done, without an answer", false, status.Error(codes.Unavailable, "away")),
			answers("done in part", true, errors.New("the marker can't be written")),
			answers("no room", false, status.Error(codes.ResourceExhausted, "no room")),
			answers("never", false, provisioner.Infeasible("size", "4Gi", "too much")),
		)
	}
	if grant || size <= i.disk {
		i.disk = max(i.disk, size)
		if provisioner.IsInfeasible(err) || status.Code(err) == codes.ResourceExhausted {
			err = nil // there was room all along
		}
	}
	i.check()
	return provisioner.Expansion{Size: i.disk}, err
}

type noEvents struct{}

func (noEvents) Eventf(runtime.Object, runtime.Object, string, string, string, string, ...any) {}

var _ events.EventRecorder = noEvents{}
