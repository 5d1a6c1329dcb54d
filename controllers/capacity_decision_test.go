package controllers

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

const gib = int64(1 << 30)

var here = capacityTarget{
	Driver: "ours.example.com", Node: "node-1", Namespace: "berth-system", Hostname: "host-1",
	Owner: metav1.OwnerReference{APIVersion: "storage.k8s.io/v1", Kind: "CSIDriver", Name: "ours.example.com", UID: "driver-uid"},
}

// published returns the object of a class that says there is room, as the
// cluster has it.
func published(target capacityTarget, class string, available, largest int64) *storagev1.CSIStorageCapacity {
	o := newCapacity(target, class, provisioner.Capacity{Available: available, MaximumVolumeSize: largest})
	o.UID = "uid-of-" + o.UID
	return o
}

func reads(class string, available, largest int64) capacityReading {
	return capacityReading{Class: class, Capacity: provisioner.Capacity{Available: available, MaximumVolumeSize: largest}}
}

// fails returns what is read of the class fast when there is no answer.
func fails(err error) capacityReading {
	return capacityReading{Class: "fast", Err: err}
}

func TestPlanCapacity(t *testing.T) {
	var (
		unreachable = &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("no route")}
		wrong       = provisioner.Infeasible("StorageClass parameter mode", "9", "want octal")
		old         = published(here, "fast", 5*gib, 2*gib)
		moved       = here
		adopted     = here
	)
	moved.Hostname = "host-2"
	adopted.Owner.UID = "another-uid"
	type objects = []*storagev1.CSIStorageCapacity
	for name, tt := range map[string]struct {
		target   capacityTarget
		readings []capacityReading
		existing objects
		outage   time.Duration
		want     capacityPlan
	}{
		"nothing is published yet": {
			target: here, readings: []capacityReading{reads("fast", 5*gib, 2*gib)},
			want: capacityPlan{Create: objects{newCapacity(here, "fast", provisioner.Capacity{Available: 5 * gib, MaximumVolumeSize: 2 * gib})}},
		},
		"no room is published too": {
			target: here, readings: []capacityReading{reads("fast", 0, 0)},
			want: capacityPlan{Create: objects{newCapacity(here, "fast", provisioner.Capacity{})}},
		},
		"less than no room is none": {
			target: here, readings: []capacityReading{reads("fast", -gib, -1)},
			want: capacityPlan{Create: objects{newCapacity(here, "fast", provisioner.Capacity{})}},
		},
		"what has not changed is not written": {
			target: here, readings: []capacityReading{reads("fast", 5*gib, 2*gib)}, existing: objects{old},
		},
		"nor what has changed by less than a megabyte": {
			target: here, readings: []capacityReading{reads("fast", 5*gib+capacityUnit-1, 2*gib+1)}, existing: objects{old},
		},
		"less is available": {
			target: here, readings: []capacityReading{reads("fast", 4*gib, 2*gib)}, existing: objects{old},
			want: capacityPlan{Update: objects{published(here, "fast", 4*gib, 2*gib)}},
		},
		"the largest volume is smaller": {
			target: here, readings: []capacityReading{reads("fast", 5*gib, gib)}, existing: objects{old},
			want: capacityPlan{Update: objects{published(here, "fast", 5*gib, gib)}},
		},
		"the node or the class is gone": {
			target: here, existing: objects{old},
			want: capacityPlan{Delete: objects{old}},
		},
		"one class of two is gone": {
			target: here, readings: []capacityReading{reads("slow", gib, gib)}, existing: objects{old, published(here, "slow", gib, gib)},
			want: capacityPlan{Delete: objects{old}},
		},
		"the node's label has changed, which an object's selector can't": {
			target: moved, readings: []capacityReading{reads("fast", 5*gib, 2*gib)}, existing: objects{old},
			want: capacityPlan{Create: objects{newCapacity(moved, "fast", provisioner.Capacity{Available: 5 * gib, MaximumVolumeSize: 2 * gib})}, Delete: objects{old}},
		},
		"the owner was made anew": {
			target: adopted, readings: []capacityReading{reads("fast", 5*gib, 2*gib)}, existing: objects{old},
			want: capacityPlan{Update: objects{published(adopted, "fast", 5*gib, 2*gib)}},
		},
		"the owner was made anew while the node is unreachable": {
			target: adopted, readings: []capacityReading{fails(unreachable)}, existing: objects{old},
			want: capacityPlan{Update: objects{published(adopted, "fast", 5*gib, 2*gib)}},
		},
		"an unreachable node keeps its room for the grace": {
			target: here, readings: []capacityReading{fails(unreachable)}, existing: objects{old}, outage: time.Minute - 1,
		},
		"and has none after it": {
			target: here, readings: []capacityReading{fails(unreachable)}, existing: objects{old}, outage: time.Minute,
			want: capacityPlan{Update: objects{published(here, "fast", 0, 0)}},
		},
		"an unreachable node that was never asked gets no object": {
			target: here, readings: []capacityReading{fails(unreachable)}, outage: time.Hour,
		},
		"any other failure is like an unreachable node": {
			target: here, readings: []capacityReading{fails(errors.New("disk on fire"))}, existing: objects{old}, outage: time.Minute,
			want: capacityPlan{Update: objects{published(here, "fast", 0, 0)}},
		},
		"pods of an infeasible class don't wait for room": {
			target: here, readings: []capacityReading{fails(wrong)},
			want: capacityPlan{Create: objects{newCapacity(here, "fast", provisioner.Capacity{Available: math.MaxInt64, MaximumVolumeSize: math.MaxInt64})}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := planCapacity(tt.target, tt.readings, tt.existing, tt.outage, time.Minute)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCapacityNamesDifferByAllThatCannotBeChanged(t *testing.T) {
	names := map[string]string{}
	for _, target := range []capacityTarget{
		here,
		{Driver: "other.example.com", Node: here.Node, Hostname: here.Hostname},
		{Driver: here.Driver, Node: "node-2", Hostname: here.Hostname},
		{Driver: here.Driver, Node: here.Node, Hostname: "host-2"},
	} {
		for _, class := range []string{"fast", "slow"} {
			name := capacityName(target, class)
			if other, taken := names[name]; taken {
				t.Errorf("%s of %+v has the name of %s", class, target, other)
			}
			names[name] = class
		}
	}
	again := here
	again.Owner.UID = "another-uid" // which can be changed
	if capacityName(again, "fast") != capacityName(here, "fast") {
		t.Error("the name changes from one time to the next")
	}
}

func TestNextLookIsSoonAfterAChange(t *testing.T) {
	for since, want := range map[time.Duration]time.Duration{
		0:                         time.Second,
		time.Second:               time.Second,
		10 * time.Second:          10 * time.Second,
		time.Hour:                 time.Minute,
		time.Duration(1<<63 - 1):  time.Minute,
		500 * time.Millisecond:    time.Second,
		time.Minute + time.Second: time.Minute,
		-time.Second /* clock */ : time.Second,
	} {
		if got := nextLook(since, time.Minute); got != want {
			t.Errorf("%s after a change the next look comes after %s, want %s", since, got, want)
		}
	}
}
