package controllers

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

const (
	// labelCapacityDriver is on every CSIStorageCapacity object of Berth's, and
	// names the driver.
	labelCapacityDriver = "berth.storage/driver"
	// annCapacityNode is the Node that such an object is about.
	annCapacityNode = "berth.storage/node"
)

const (
	// capacityUnit is what published room is rounded down to, so that a log file
	// that grows somewhere on a pool's filesystem is not worth a write.
	capacityUnit = 1 << 20
	// unlimitedRoom is published for classes that the driver calls infeasible. Their
	// pods must not wait for room: the driver has to see the claim, since it
	// says in an event what is wrong with the class.
	unlimitedRoom = math.MaxInt64
)

// capacityTarget is a node, as one driver's capacity is published for it.
type capacityTarget struct {
	Driver, Node string
	// Namespace is where the objects are.
	Namespace string
	// Hostname is the Node's label kubernetes.io/hostname, which need not be its
	// name. kube-scheduler finds a node's objects by it.
	Hostname string
	// Owner is what the objects go away with.
	Owner metav1.OwnerReference
}

// capacityReading is what the driver says of one class on the node.
type capacityReading struct {
	Class    string
	Capacity provisioner.Capacity
	Err      error
}

// capacityPlan is what to write. What is in none of its lists is right as it is.
type capacityPlan struct {
	Create, Update, Delete []*storagev1.CSIStorageCapacity
}

// planCapacity says how to get from the objects that exist for target to those
// that should. readings has one entry for each class that waits for its first
// consumer, the only ones whose pods kube-scheduler asks about; it is empty when
// the node is gone.
//
// outage is how long the driver has not been able to say how much room the node
// has. Until grace is over what was said last stands: an agent that is
// restarted is no reason to send pods elsewhere. Then there is no room: a pod
// that were sent to this node would wait there for its volume. A node that was
// never asked with success has no object, which means the same.
func planCapacity(target capacityTarget, readings []capacityReading, existing []*storagev1.CSIStorageCapacity, outage, grace time.Duration) capacityPlan {
	var plan capacityPlan
	obsolete := map[string]*storagev1.CSIStorageCapacity{}
	for _, o := range existing {
		obsolete[o.Name] = o
	}
	for _, reading := range readings {
		name := capacityName(target, reading.Class)
		current := obsolete[name]
		delete(obsolete, name)
		room, known := publishedRoom(reading, outage, grace)
		switch {
		case current == nil && reading.Err != nil && !provisioner.IsInfeasible(reading.Err):
		case current == nil:
			plan.Create = append(plan.Create, newCapacity(target, reading.Class, room))
		case known && !sameRoom(current, room), !ownedBy(current, target.Owner):
			update := newCapacity(target, reading.Class, room)
			update.UID = current.UID
			if !known {
				update.Capacity, update.MaximumVolumeSize = current.Capacity, current.MaximumVolumeSize
			}
			plan.Update = append(plan.Update, update)
		}
	}
	for _, o := range existing {
		if obsolete[o.Name] != nil {
			plan.Delete = append(plan.Delete, o)
		}
	}
	return plan
}

// publishedRoom is what a reading is worth to kube-scheduler; false when it says
// nothing new.
func publishedRoom(reading capacityReading, outage, grace time.Duration) (provisioner.Capacity, bool) {
	switch {
	case reading.Err == nil:
		return provisioner.Capacity{
			Available:         roundRoom(reading.Capacity.Available),
			MaximumVolumeSize: roundRoom(reading.Capacity.MaximumVolumeSize),
		}, true
	case provisioner.IsInfeasible(reading.Err):
		return provisioner.Capacity{Available: unlimitedRoom, MaximumVolumeSize: unlimitedRoom}, true
	}
	return provisioner.Capacity{}, outage >= grace
}

// roundRoom rounds down to capacityUnit. The API server refuses less than 0,
// which a pool may have that was shrunk.
func roundRoom(bytes int64) int64 {
	return max(0, bytes-bytes%capacityUnit)
}

// newCapacity returns the object that publishes room for a class on a node. The
// maximum volume size is what kube-scheduler compares a claim with, when there
// is one (volumebinding/binder.go, capacitySufficient): with several directories
// in a pool it is less than what is available in all.
func newCapacity(target capacityTarget, class string, room provisioner.Capacity) *storagev1.CSIStorageCapacity {
	return &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       target.Namespace,
			Name:            capacityName(target, class),
			Labels:          map[string]string{labelCapacityDriver: target.Driver},
			Annotations:     map[string]string{annCapacityNode: target.Node},
			OwnerReferences: []metav1.OwnerReference{target.Owner},
		},
		NodeTopology:      &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: target.Hostname}},
		StorageClassName:  class,
		Capacity:          resource.NewQuantity(room.Available, resource.BinarySI),
		MaximumVolumeSize: resource.NewQuantity(room.MaximumVolumeSize, resource.BinarySI),
	}
}

// capacityName is the same for everything that can't be changed in an object, so
// that two attempts to create it can't leave two.
func capacityName(target capacityTarget, class string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{target.Driver, target.Node, target.Hostname, class}, "\x00")))
	return "berth-" + hex.EncodeToString(sum[:10])
}

func sameRoom(o *storagev1.CSIStorageCapacity, room provisioner.Capacity) bool {
	return o.Capacity != nil && o.Capacity.Value() == room.Available &&
		o.MaximumVolumeSize != nil && o.MaximumVolumeSize.Value() == room.MaximumVolumeSize
}

func ownedBy(o *storagev1.CSIStorageCapacity, owner metav1.OwnerReference) bool {
	return len(o.OwnerReferences) == 1 && o.OwnerReferences[0].UID == owner.UID
}

// nextLook is when to ask for a node's room again. What follows a change, the
// emptying of the trash above all, is looked for soon, and ever more seldom.
func nextLook(sinceChange, interval time.Duration) time.Duration {
	return min(max(sinceChange, time.Second), interval)
}
