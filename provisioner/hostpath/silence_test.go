package hostpath_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
)

// pass lets time pass.
func (f *fleet) pass(d time.Duration) { f.clock.SetTime(f.clock.Now().Add(d)) }

// wantWait makes sure that a claim is tried again on its node, soon.
func (f *fleet) wantWait(opts controller.ProvisionOptions) {
	f.t.Helper()
	_, state, err := f.driver.Provision(f.ctx, opts)
	if _, again := provisioner.RetryAfter(err); !again || state != controller.ProvisioningInBackground {
		f.t.Fatalf("Provision = %s, %v, want it to be tried again", state, err)
	}
}

// TestAHungDiskGivesItsClaimsBack: the node answers, and so do its other pools.
func TestAHungDiskGivesItsClaimsBack(t *testing.T) {
	for name, answers := range map[string][]error{
		"the disk does not answer":   {status.Error(codes.Unavailable, "the disk of /ssd has not answered for 5s")},
		"the call does not end":      {status.Error(codes.DeadlineExceeded, "context deadline exceeded")},
		"and nor does the first one": {status.Error(codes.DeadlineExceeded, "context deadline exceeded"), status.Error(codes.Aborted, "an operation on volume pvc-1 is under way")},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n1", "n2")
			wanted := on("n1", "pool", "ssd")
			others := func(i int) {
				if _, err := f.driver.Capacity(f.ctx, wanted.StorageClass, "n1"); err != nil {
					t.Error(err)
				}
				other := on("n1")
				other.PVName = fmt.Sprintf("pvc-other-%d", i)
				must(t, f.driver.Delete(f.ctx, f.provision(other)))
				if _, _, err := f.driver.Provision(f.ctx, on("n1", "pool", "ssd", "quota", "hard")); !provisioner.IsInfeasible(err) {
					t.Errorf("a bad class: %v", err)
				}
			}
			for i := range 3 {
				f.nodes["n1"].hung = map[string]error{"ssd": answers[min(i, len(answers)-1)]}
				f.wantWait(wanted)
				others(i)
				f.pass(25 * time.Second)
			}
			f.wantReschedule(wanted, "pool ssd on node n1", "has not answered for 1m15s", "scheduler")

			// What is full answers.
			f.nodes["n1"].hung["ssd"] = status.Error(codes.ResourceExhausted, "pool ssd on node n1 has no room")
			f.wantReschedule(wanted, "has no room")
			f.nodes["n1"].hung["ssd"] = answers[0]
			f.wantWait(wanted)
		})
	}
}

// TestAnotherCallOnTheVolumeIsNoSilence: not as long as nothing has hung.
func TestAnotherCallOnTheVolumeIsNoSilence(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	f.nodes["n1"].hung = map[string]error{"default": status.Error(codes.Aborted, "an operation on volume pvc-1 is under way")}
	for range 10 {
		_, state, err := f.driver.Provision(f.ctx, on("n1"))
		if _, again := provisioner.RetryAfter(err); again || state != controller.ProvisioningInBackground {
			t.Fatalf("Provision = %s, %v", state, err)
		}
		f.pass(25 * time.Second)
	}
}

// TestAnOldFailureDoesNotCount: nobody has called the node since.
func TestAnOldFailureDoesNotCount(t *testing.T) {
	for name, hang := range map[string]func(*fleetNode){
		"of the node": func(n *fleetNode) {
			n.lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
		},
		"of a pool": func(n *fleetNode) {
			n.hung = map[string]error{"default": status.Error(codes.Unavailable, "the disk has not answered")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n1", "n2")
			hang(f.nodes["n1"])
			f.wantWait(on("n1"))
			f.pass(time.Hour)
			f.wantWait(on("n1"))
			f.pass(30 * time.Second)
			f.wantWait(on("n1"))
			f.pass(30 * time.Second)
			f.wantReschedule(on("n1"), "has not answered for 1m0s")
		})
	}
}

// TestACallThatWasNotMadeSaysNothing: a silence neither begins nor ends by it.
func TestACallThatWasNotMadeSaysNothing(t *testing.T) {
	f := newFleet(t, "n1", "n2")
	crowded := &provisioner.UnavailableError{RetryAfter: time.Second, Err: fmt.Errorf("agent on node n1: %w", hostpath.ErrNotAsked)}
	f.nodes["n1"].lost = crowded
	for range 10 {
		f.wantWait(on("n1"))
		f.pass(25 * time.Second)
	}
	f.nodes["n1"].lost = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("connection refused")}
	f.wantWait(on("n1"))
	f.nodes["n1"].lost = crowded
	for range 3 {
		f.pass(25 * time.Second)
		if _, err := f.driver.Capacity(f.ctx, on("n1").StorageClass, "n1"); !errors.Is(err, hostpath.ErrNotAsked) {
			t.Errorf("Capacity: %v", err)
		}
	}
	f.wantReschedule(on("n1"), "has not answered for 1m15s")
}
