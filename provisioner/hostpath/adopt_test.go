package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// restored is what docs/operations.md gives a class for restoring.
const restored = "restored/${pvc.namespace}/${pvc.name}"

// adopting asks for the directory restored/ns/claim, for a pod on a node; "" for none.
func adopting(node string) controller.ProvisionOptions {
	return on(node, "pathPattern", restored, "existing", "adopt")
}

// bring makes the directory on a node, whose pool is in use.
func (f *fleet) bring(names ...string) {
	f.t.Helper()
	for _, name := range names {
		f.use(name)
		must(f.t, os.MkdirAll(filepath.Join(f.nodes[name].base, "restored/ns/claim"), 0o750))
		must(f.t, os.WriteFile(filepath.Join(f.nodes[name].base, "restored/ns/claim/data"), []byte("precious"), 0o600))
	}
}

// use has an administrator release the pool of a node.
func (f *fleet) use(names ...string) {
	f.t.Helper()
	for _, name := range names {
		must(f.t, os.MkdirAll(filepath.Join(f.nodes[name].base, ".berth"), 0o700))
	}
}

// wantNothingMade wants the nodes to have what was brought, and no volumes.
func (f *fleet) wantNothingMade() {
	f.t.Helper()
	for name, n := range f.nodes {
		for _, pattern := range []string{"[^.r]*", "restored/*/[^c]*", ".berth/volumes/*"} {
			if found, _ := filepath.Glob(filepath.Join(n.base, pattern)); len(found) > 0 {
				f.t.Errorf("node %s has %v", name, found)
			}
		}
	}
}

func (f *fleet) wantRefused(opts controller.ProvisionOptions, wait time.Duration, words ...string) {
	f.t.Helper()
	_, state, err := f.driver.Provision(f.ctx, opts)
	if err == nil || state == controller.ProvisioningReschedule || provisioner.IsInfeasible(err) {
		f.t.Fatalf("Provision = %s, %v", state, err)
	}
	if got, _ := provisioner.RetryAfter(err); got != wait {
		f.t.Errorf("again after %s, want %s: %v", got, wait, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			f.t.Errorf("%v does not say %q", err, word)
		}
	}
}

// TestAClaimIsMadeWhereItsDirectoryIs: whatever node was selected, has the most room,
// is cordoned or not ready.
func TestAClaimIsMadeWhereItsDirectoryIs(t *testing.T) {
	for _, selected := range []string{"", "n1", "n2", "n3", "n9"} {
		f := newFleet(t, "n1", "n2", "n3")
		f.use("n1", "n3")
		f.bring("n2")
		f.nodes["n2"].Spec.Unschedulable = true
		f.nodes["n2"].Status.Conditions = nil
		f.roomOn("n1", 1<<40)
		f.roomOn("n2", 0)
		volume := f.provision(adopting(selected))
		if volume.Annotations[hostpath.AnnNode] != "n2" || volume.Annotations[request.AnnAdopted] != "true" {
			t.Errorf("selected %q: %v", selected, volume.Annotations)
		}
		if text, err := os.ReadFile(filepath.Join(volume.Spec.Local.Path, "data")); string(text) != "precious" {
			t.Errorf("selected %q: %q, %v", selected, text, err)
		}
		if notice := f.driver.Notice(volume); !strings.HasPrefix(notice, `adopted the directory "restored/ns/claim" with what is in it on node n2`) {
			t.Errorf("Notice = %q", notice)
		}
		if again := f.provision(adopting("n1")); again.Annotations[hostpath.AnnNode] != "n2" {
			t.Errorf("tried again it is on %s", again.Annotations[hostpath.AnnNode])
		}
	}
}

func TestNoneHasTheDirectory(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.use("n1", "n2")
	for _, selected := range []string{"", "n1"} {
		f.wantRefused(adopting(selected), time.Minute, "no directory to adopt", `existing: "adopt"`, `"restored/ns/claim"`, "n1; n2", "none is made")
	}
	f.wantNothingMade()
	// It is brought, and found once a minute is over.
	f.bring("n1")
	f.wantRefused(adopting(""), time.Minute, "no directory")
	f.clock.SetTime(f.clock.Now().Add(time.Minute))
	f.provision(adopting(""))
}

// TestNodesAreAskedOnce: those that have answered, for a minute.
func TestNodesAreAskedOnce(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	f.use("n1", "n2", "n3")
	f.nodes["n3"].failing = status.Error(codes.Unavailable, "connection refused")
	for range 3 {
		f.wantRefused(adopting(""), 5*time.Second, "n3")
		f.clock.SetTime(f.clock.Now().Add(5 * time.Second))
	}
	for name, want := range map[string]int64{"n1": 1, "n2": 1, "n3": 3} {
		if calls := f.nodes[name].calls.Load(); calls != want {
			t.Errorf("%s was called %d times, want %d", name, calls, want)
		}
	}
	// Another question is another one.
	f.wantRefused(with(adopting(""), setSize("2Gi")), 5*time.Second)
	if calls := f.nodes["n1"].calls.Load(); calls != 2 {
		t.Errorf("n1 was called %d times", calls)
	}
}

func TestTwoHaveTheDirectory(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	f.use("n2")
	f.bring("n1", "n3")
	for _, selected := range []string{"", "n1", "n2"} {
		f.wantRefused(adopting(selected), time.Minute, "several nodes", "n1 ("+f.nodes["n1"].base+")", "n3 ("+f.nodes["n3"].base+")")
	}
	f.wantNothingMade()
	opts := adopting("n1")
	opts.StorageClass.UID, opts.StorageClass.AllowedTopologies = "made-anew", topologies("zone", "n2", "n3")
	if got := f.provision(opts).Annotations[hostpath.AnnNode]; got != "n3" {
		t.Errorf("the volume is on %s", got)
	}
}

func TestAClaimWaitsForWhoeverCouldHaveItsDirectory(t *testing.T) {
	unmounted := func(f *fleet) { f.inUse = func(node string) bool { return node == "n2" } }
	for name, tt := range map[string]struct {
		make  func(*fleet, *fleetNode)
		words []string
	}{
		"not to be reached": {func(_ *fleet, n *fleetNode) {
			n.lost = &provisioner.UnavailableError{RetryAfter: 5 * time.Second, Err: errors.New("node n2: connection refused")}
		}, []string{"node n2: connection refused"}},
		"silent":      {func(_ *fleet, n *fleetNode) { n.failing = context.DeadlineExceeded }, []string{"node n2 has not answered"}},
		"not mounted": {func(f *fleet, _ *fleetNode) { unmounted(f) }, []string{"n2", "is its disk mounted?"}},
		"another disk": {func(_ *fleet, n *fleetNode) {
			n.failing = status.Error(codes.FailedPrecondition, "pool default: not the pool it should be")
		}, []string{"node n2: pool default: not the pool it should be"}},
		"an older agent": {func(_ *fleet, n *fleetNode) {
			n.failing = status.Error(codes.InvalidArgument, `parameter berth.storage/dry-run: "true": there is no such parameter`)
		}, []string{"node n2: its agent is older than this controller", "update it"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n1", "n2")
			f.bring("n1")
			tt.make(f, f.nodes["n2"])
			for _, selected := range []string{"", "n1"} {
				f.wantRefused(adopting(selected), 5*time.Second, append(tt.words, "waiting for all nodes")...)
			}
			f.wantNothingMade()
			f.clock.SetTime(f.clock.Now().Add(10 * time.Minute))
			f.wantRefused(adopting("n2"), 5*time.Second, tt.words...) // it does not go back to the scheduler
			f.nodes["n2"].Node = nil                                  // nobody can have a pod there
			f.provision(adopting("n1"))
		})
	}
}

// TestAnAgentThatIsBeingReplacedIsWaitedFor: its node had the pool a moment ago.
func TestAnAgentThatIsBeingReplacedIsWaitedFor(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	f.use("n3")
	other := on("n2")
	other.PVName, other.PVC.UID = "pvc-other", "uid-other"
	f.provision(other)
	f.bring("n1", "n2")
	f.meet()
	f.nodes["n2"].lost = fmt.Errorf("node n2: %w", hostpath.ErrNoServer)
	f.meet()
	f.wantRefused(adopting("n1"), 5*time.Second, "node n2", "waiting for all nodes")
	f.clock.SetTime(f.clock.Now().Add(11 * time.Minute)) // as long as it is believed to have its pools
	f.meet()
	f.provision(adopting("n1"))
}

// TestAnOlderAgentMakesNothing: one that took the place of one that had answered.
func TestAnOlderAgentMakesNothing(t *testing.T) {
	f := newFleet(t, "n1")
	f.bring("n1")
	driver, err := hostpath.New(hostpath.Options{Nodes: &becomesOlder{f}, Node: f.node})
	must(t, err)
	_, _, err = driver.Provision(f.ctx, adopting(""))
	if err == nil || !strings.Contains(err.Error(), wire.ParamDryRun) {
		t.Errorf("Provision = %v", err)
	}
	f.wantNothingMade()
}

// becomesOlder is a fleet whose agents know nothing of dry runs any more once they
// have answered one.
type becomesOlder struct{ *fleet }

func (b *becomesOlder) Server(ctx context.Context, name string) (csi.ControllerClient, error) {
	client, err := b.fleet.Server(ctx, name)
	return &older{client}, err
}

type older struct{ csi.ControllerClient }

func (o *older) CreateVolume(ctx context.Context, in *csi.CreateVolumeRequest, opts ...grpc.CallOption) (*csi.CreateVolumeResponse, error) {
	switch in.GetParameters()[wire.ParamDryRun] {
	case wire.DryRunYes:
		return o.ControllerClient.CreateVolume(ctx, in, opts...)
	case wire.DryRunNo:
		return nil, status.Errorf(codes.InvalidArgument, "parameter %s: there is no such parameter", wire.ParamDryRun)
	}
	return o.ControllerClient.CreateVolume(ctx, in, opts...)
}

// TestAnAttemptGoesOnWhereItWasBegun: it ended before there was a PersistentVolume.
func TestAnAttemptGoesOnWhereItWasBegun(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	f.use("n3")
	f.bring("n2")
	first := f.provision(adopting(""))
	f.bring("n1")
	f.nodes["n3"].failing = context.DeadlineExceeded
	driver, err := hostpath.New(hostpath.Options{Nodes: f, Node: f.node})
	must(t, err)
	volume, _, err := driver.Provision(f.ctx, adopting("n1"))
	if err != nil || volume.Spec.Local.Path != first.Spec.Local.Path {
		t.Fatalf("Provision = %v, %v", volume, err)
	}
	// Nor does it count where the claim's label leads by now.
	opts := on("", "pathPattern", "${pvc.namespace}/${pvc.labels['app']}", "existing", "adopt")
	opts.PVC.Labels = nil
	volume, _, err = driver.Provision(f.ctx, opts)
	if err != nil || volume.Spec.Local.Path != first.Spec.Local.Path {
		t.Fatalf("without its label: %v, %v", volume, err)
	}
}

func TestAClaimWithoutItsLabelAdoptsNothing(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.use("n1", "n2")
	opts := on("", "pathPattern", "${pvc.namespace}/${pvc.labels['missing']}", "existing", "adopt")
	_, _, err := f.driver.Provision(f.ctx, opts)
	if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), "${pvc.labels['missing']}") {
		t.Errorf("Provision = %v", err)
	}
}

// TestWhatIsLargerThanItsDiskIsNotAdopted: no other node will do, so the claim does
// not go back to the scheduler.
func TestWhatIsLargerThanItsDiskIsNotAdopted(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.use("n2")
	f.bring("n1")
	_, state, err := f.driver.Provision(f.ctx, with(adopting("n2"), setSize("7Ei")))
	if !provisioner.IsInfeasible(err) || state != controller.ProvisioningFinished || !strings.Contains(err.Error(), "node n1 has") {
		t.Errorf("Provision = %s, %v", state, err)
	}
	f.wantNothingMade()
}

// TestClassesThatLetTenantsTakeDirectoriesAreRefused: also those that an earlier Berth
// has served, and whatever is on the disks.
func TestClassesThatLetTenantsTakeDirectoriesAreRefused(t *testing.T) {
	f := newFleet(t, "n1")
	f.use("n1")
	must(t, os.Mkdir(filepath.Join(f.nodes["n1"].base, "restored-ns-claim"), 0o750))
	for _, pattern := range []string{"restored-${pvc.namespace}-${pvc.name}", "restored-ns-claim", "${pvc.annotations['x']}", "${pvc.name}"} {
		opts := on("n1", "pathPattern", pattern, "existing", "adopt")
		opts.PVC.Annotations = map[string]string{"x": "restored-ns-claim"}
		_, state, err := f.driver.Provision(f.ctx, opts)
		if !provisioner.IsInfeasible(err) || state != controller.ProvisioningFinished {
			t.Fatalf("%s: Provision = %s, %v", pattern, state, err)
		}
		// Its pods are placed, so that the claim is told.
		if _, err := f.driver.Capacity(f.ctx, opts.StorageClass, "n1"); !provisioner.IsInfeasible(err) {
			t.Errorf("%s: Capacity = %v", pattern, err)
		}
		for _, word := range []string{"StorageClass parameter pathPattern", pattern, "restored/${pvc.namespace}/${pvc.name}"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%v does not say %q", err, word)
			}
		}
	}
	f.wantNothingMade()
}

func TestTheOnlyNodeAdoptsOrRefuses(t *testing.T) {
	b := newBench(t)
	must(t, os.Mkdir(filepath.Join(b.base, ".berth"), 0o700))
	opts := askFor("pathPattern", restored, "existing", "adopt")
	opts.SelectedNodeName = "another"
	_, state, err := b.driver.Provision(b.ctx, opts)
	if wait, _ := provisioner.RetryAfter(err); wait != time.Minute || state != controller.ProvisioningFinished || !strings.Contains(err.Error(), "restored/ns/claim") {
		t.Fatalf("Provision = %s, %v", state, err)
	}
	b.wantNothingMade()
	must(t, os.MkdirAll(filepath.Join(b.base, "restored/ns/claim"), 0o750))
	volume := b.provision(opts)
	if volume.Annotations[request.AnnAdopted] != "true" {
		t.Errorf("%v", volume.Annotations)
	}
	made := b.provision(with(askFor(), func(o *controller.ProvisionOptions) { o.PVName, o.PVC.UID = "pvc-2", "uid-2" }))
	if notice := b.driver.Notice(made); made.Annotations[request.AnnAdopted] != "" || !strings.HasPrefix(notice, "made a new directory") {
		t.Errorf("%v, %q", made.Annotations, notice)
	}
	must(t, b.driver.Discard(b.ctx, b.driver.RecordOf(volume)))
	if _, err := os.Stat(volume.Spec.Local.Path); err != nil {
		t.Errorf("what was adopted did not survive its being taken back: %v", err)
	}
}
