package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/request"
)

func TestTheVolumeIsMadeWhereThePodIs(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	volume := f.provision(on("n2"))
	terms := volume.Spec.NodeAffinity.Required.NodeSelectorTerms
	if volume.Annotations[hostpath.AnnNode] != "n2" || volume.Spec.Local.Path != filepath.Join(f.nodes["n2"].base, "ns-claim-pvc-1") ||
		terms[0].MatchExpressions[0].Values[0] != "host-n2" || f.driver.NodeOf(volume) != "n2" {
		t.Errorf("volume = %+v", volume)
	}
	must(t, f.driver.Delete(f.ctx, volume))
	if _, err := os.Stat(volume.Spec.Local.Path); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	for _, name := range []string{"n1", "n3"} {
		if calls := f.nodes[name].calls.Load(); calls > 0 {
			t.Errorf("node %s was called %d times", name, calls)
		}
	}
}

func TestClaimsGoBackToTheScheduler(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.wantReschedule(on("n9"), "no node n9 any more")
	f.nodes["n9"] = &fleetNode{lost: fmt.Errorf("node n9: %w", hostpath.ErrNoServer), Node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n9", Labels: map[string]string{corev1.LabelHostname: "n9"}}}}
	f.wantReschedule(on("n9"), "no berth agent")
	f.wantReschedule(on("n1", "pool", "ssd"), "--pool ssd=")
	f.wantReschedule(with(on("n1"), setSize("7Ei")), "in all")
	f.wantReschedule(on("n1", "quota", "required"), "quota")
	f.wantReschedule(with(on("n1"), func(o *controller.ProvisionOptions) { o.StorageClass.AllowedTopologies = topologies("zone", "n2") }), "allowedTopologies")
	f.nodes["n1"].failing = status.Error(codes.ResourceExhausted, "pool default on node n1 has no room for 1Gi")
	f.wantReschedule(on("n1"), "has no room")
}

func TestANodeThatStaysUnreachableGivesItsClaimsBack(t *testing.T) {
	for name, silence := range map[string]func(*fleetNode){
		"not to be reached": func(n *fleetNode) {
			n.lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("node n1: connection refused")}
		},
		"unavailable": func(n *fleetNode) { n.failing = status.Error(codes.Unavailable, "connection refused") },
		"silent":      func(n *fleetNode) { n.failing = context.DeadlineExceeded },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n1", "n2")
			silence(f.nodes["n1"])
			for range 3 {
				_, state, err := f.driver.Provision(f.ctx, on("n1"))
				if err == nil || state == controller.ProvisioningReschedule || provisioner.IsInfeasible(err) {
					t.Fatalf("Provision = %s, %v", state, err)
				}
				if _, again := provisioner.RetryAfter(err); !again {
					t.Errorf("%v does not say when to try again", err)
				}
				f.clock.SetTime(f.clock.Now().Add(25 * time.Second))
			}
			f.wantReschedule(on("n1"), "has not answered for 1m15s", "scheduler")
			f.nodes["n1"].lost, f.nodes["n1"].failing = nil, nil
			f.provision(on("n1"))
			silence(f.nodes["n1"])
			if _, state, _ := f.driver.Provision(f.ctx, on("n1")); state == controller.ProvisioningReschedule {
				t.Error("its earlier silence still counts")
			}
		})
	}
}

func TestImmediateTakesTheNodeWithTheMostRoom(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3", "n4", "n5", "n6", "n7")
	for i, name := range []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7"} {
		f.roomOn(name, int64(i+10)<<30)
	}
	f.nodes["n7"].Spec.Unschedulable = true
	f.nodes["n6"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
	f.nodes["n5"].failing = status.Error(codes.Unavailable, "connection reset")
	f.nodes["n4"].Node = nil
	if got := f.provision(on("")).Annotations[hostpath.AnnNode]; got != "n3" {
		t.Errorf("the volume went to %s, want n3", got)
	}
}

func TestImmediateTriesTheNextNode(t *testing.T) {
	for name, failure := range map[string]error{
		"exhausted":   status.Error(codes.ResourceExhausted, "full by now"),
		"too small":   status.Error(codes.OutOfRange, "1Gi in all"),
		"unreachable": status.Error(codes.Unavailable, "connection reset"),
		"not mounted": status.Error(codes.FailedPrecondition, "is its disk mounted?"),
	} {
		f := newFleet(t, "n1", "n2")
		f.roomOn("n1", 20<<30)
		f.roomOn("n2", 10<<30)
		// Only the creation fails.
		f.nodes["n1"].server.Close()
		broken := &failOnCreate{fleet: f, node: "n1", err: failure}
		driver, err := hostpath.New(hostpath.Options{Nodes: broken, Node: f.node})
		must(t, err)
		volume, _, err := driver.Provision(f.ctx, on(""))
		if err != nil || volume.Annotations[hostpath.AnnNode] != "n2" || broken.asked.Load() != 1 {
			t.Errorf("%s: Provision = %v after asking n1 %d times", name, err, broken.asked.Load())
		}
	}
}

// failOnCreate is a fleet of which one node makes no volumes.
type failOnCreate struct {
	*fleet
	node  string
	err   error
	asked atomic.Int64
}

func (b *failOnCreate) Server(ctx context.Context, name string) (csi.ControllerClient, error) {
	client, err := b.fleet.Server(ctx, name)
	if name == b.node && err == nil {
		return &createFails{client, b}, nil
	}
	return client, err
}

type createFails struct {
	csi.ControllerClient
	by *failOnCreate
}

func (c *createFails) CreateVolume(context.Context, *csi.CreateVolumeRequest, ...grpc.CallOption) (*csi.CreateVolumeResponse, error) {
	c.by.asked.Add(1)
	return nil, c.by.err
}

func TestImmediateSaysWhyNoNodeWillDo(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	f.roomOn("n1", 1)
	f.nodes["n2"].Spec.Unschedulable = true
	f.nodes["n3"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
	_, state, err := f.driver.Provision(f.ctx, on(""))
	if err == nil || state == controller.ProvisioningReschedule || provisioner.IsInfeasible(err) {
		t.Fatalf("Provision = %s, %v", state, err)
	}
	for _, word := range []string{"n1 has room for 1", "n2 is cordoned", "n3: connection refused"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

func TestImmediateLooksFurtherThanOneHandful(t *testing.T) {
	var names []string
	for i := range 70 {
		names = append(names, fmt.Sprintf("n%d", i))
	}
	f := newFleet(t, names...)
	for _, name := range names {
		f.roomOn(name, 1)
	}
	f.nodes["n69"].room = nil
	if got := f.provision(on("")).Annotations[hostpath.AnnNode]; got != "n69" {
		t.Errorf("the volume went to %s", got)
	}
}

func TestBadClassesAreInfeasibleOnAnyNode(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	for _, name := range []string{"n1", ""} {
		for parameter, value := range map[string]string{"mode": "rwx", "quota": "hard", "pathPattern": "../x", "nope": ""} {
			_, state, err := f.driver.Provision(f.ctx, on(name, parameter, value))
			if !provisioner.IsInfeasible(err) || state != controller.ProvisioningFinished {
				t.Errorf("%s=%s on %q: %s, %v", parameter, value, name, state, err)
			}
		}
	}
	f.provision(on("n1", "pathPattern", "shared"))
	second := on("n1", "pathPattern", "shared")
	second.PVName, second.PVC.UID = "pvc-2", "uid-2"
	_, _, err := f.driver.Provision(f.ctx, second)
	if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), `pool default: path taken: StorageClass parameter pathPattern: "shared": another volume is`) {
		t.Errorf("Provision = %v", err)
	}
}

func TestVolumesListsAllNodesThatCanBeRead(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	volumes := map[string]*corev1.PersistentVolume{}
	for i, name := range []string{"n1", "n2", "n3"} {
		opts := on(name)
		opts.PVName = fmt.Sprintf("pvc-%d", i+1)
		volumes[opts.PVName] = f.provision(opts)
	}
	f.nodes["n2"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
	var got []string
	var failed error
	for record, err := range f.driver.Volumes(f.ctx) {
		if err != nil {
			failed = err
			continue
		}
		got = append(got, record.Volume)
		want := f.driver.RecordOf(volumes[record.Volume])
		want.Created = record.Created
		if record != want || time.Since(record.Created) > time.Minute {
			t.Errorf("record %+v, the volume's is %+v", record, want)
		}
	}
	if slices.Sort(got); !slices.Equal(got, []string{"pvc-1", "pvc-3"}) || failed == nil || !strings.Contains(failed.Error(), "n2") {
		t.Errorf("Volumes = %v, %v", got, failed)
	}
}

func TestDiscardAsksOneNodeOnly(t *testing.T) {
	f := newFleet(t, "n1", "n2", "n3")
	// An attempt on n1 was given up, and the volume is on n2 now.
	left := f.driver.RecordOf(f.provision(on("n1")))
	kept := f.provision(on("n2"))
	for _, n := range f.nodes {
		n.calls.Store(0)
	}
	if left.Place == f.driver.RecordOf(kept).Place {
		t.Errorf("both are at %s", left.Place)
	}
	must(t, f.driver.Discard(f.ctx, left))
	must(t, f.driver.Discard(f.ctx, left))
	if got := [3]int64{f.nodes["n1"].calls.Load(), f.nodes["n2"].calls.Load(), f.nodes["n3"].calls.Load()}; got != [3]int64{2, 0, 0} {
		t.Errorf("calls to the nodes: %v", got)
	}
	if _, err := os.Stat(kept.Spec.Local.Path); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(f.nodes["n1"].base)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left on n1: %v", entries)
	}
}

func TestDeleteWaitsForItsNode(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	volume := f.provision(on("n1"))
	if !f.driver.ShouldDelete(f.ctx, volume) {
		t.Error("ShouldDelete = false")
	}
	f.nodes["n1"].lost = &provisioner.UnavailableError{RetryAfter: 7 * time.Second, Err: errors.New("connection refused")}
	if after, ok := provisioner.RetryAfter(f.driver.Delete(f.ctx, volume)); !ok || after != 7*time.Second {
		t.Errorf("retry after %s, %t", after, ok)
	}
	server := f.nodes["n1"]
	delete(f.nodes, "n1")
	if err := f.driver.Delete(f.ctx, volume); !errors.Is(err, hostpath.ErrNoServer) {
		t.Errorf("Delete = %v", err)
	}
	f.nodes["n1"], server.lost = server, nil
	must(t, f.driver.Delete(f.ctx, volume))
}

func TestCapacityIsThatOfTheClass(t *testing.T) {
	f := newFleet(t, "n1")
	class := askFor().StorageClass
	room, err := f.driver.Capacity(f.ctx, class, "n1")
	if err != nil || room.Available <= 0 || room.MaximumVolumeSize <= 0 {
		t.Errorf("Capacity = %+v, %v", room, err)
	}
	for _, parameters := range [][]string{{"pool", "ssd"}, {"quota", "required"}} {
		room, err := f.driver.Capacity(f.ctx, askFor(parameters...).StorageClass, "n1")
		if err != nil || room != (provisioner.Capacity{}) {
			t.Errorf("%v: Capacity = %+v, %v", parameters, room, err)
		}
	}
	// An agent that is being replaced has not lost its disks.
	if room, err := f.driver.Capacity(f.ctx, class, "n9"); !errors.Is(err, hostpath.ErrNoServer) {
		t.Errorf("without a server: Capacity = %+v, %v", room, err)
	}
	if _, err := f.driver.Capacity(f.ctx, askFor("nope", "x").StorageClass, "n1"); !provisioner.IsInfeasible(err) {
		t.Errorf("a bad class: %v", err)
	}
}

func TestASizeThatIsNotEnforcedIsSaid(t *testing.T) {
	f := newFleet(t, "n1")
	if text := f.driver.Notice(f.provision(on("n1"))); !strings.HasPrefix(text, "made a new directory; its size is not enforced: ") {
		t.Errorf("Notice = %q", text)
	}
	wanted := on("n1", "quota", "none")
	wanted.PVName = "pvc-2"
	if text := f.driver.Notice(f.provision(wanted)); text != "made a new directory" {
		t.Errorf("the class wants it so, and still: %q", text)
	}
	enforced := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{request.AnnDriver: hostpath.Name, hostpath.AnnQuota: "enforced"}}}
	if text := f.driver.Notice(enforced); text != "made a new directory" {
		t.Errorf("Notice = %q", text)
	}
}
