package controllers

import (
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// capacityNodes is what CapacityPublisher remembers of nodes and drivers. All of
// it is learned anew after a restart: a node that is out of reach then keeps its
// room for one more grace.
type capacityNodes struct {
	clock clock.PassiveClock

	mu      sync.Mutex
	drivers map[string]*capacityDriver
	changed map[reconcile.Request]time.Time
	outages map[reconcile.Request]time.Time
}

// capacityDriver is what is known of one driver.
type capacityDriver struct {
	owner metav1.OwnerReference
	// on says that kube-scheduler looks at the driver's capacity.
	on    bool
	nodes map[string]bool
	// unseen holds the nodes of the first listing that were not looked at yet; nil
	// before that listing.
	unseen map[string]bool
}

func newCapacityNodes(c clock.PassiveClock) *capacityNodes {
	return &capacityNodes{
		clock:   c,
		drivers: map[string]*capacityDriver{},
		changed: map[reconcile.Request]time.Time{},
		outages: map[reconcile.Request]time.Time{},
	}
}

// driver returns what is known of the driver; n.mu must be held.
func (n *capacityNodes) driver(name string) *capacityDriver {
	if n.drivers[name] == nil {
		n.drivers[name] = &capacityDriver{}
	}
	return n.drivers[name]
}

// Owner returns what the driver's objects go away with; false before it is known.
func (n *capacityNodes) Owner(driver string) (metav1.OwnerReference, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	owner := n.driver(driver).owner
	return owner, owner.UID != ""
}

// SetOwner records what the driver's objects go away with, and returns the
// targets whose objects belonged to another.
func (n *capacityNodes) SetOwner(driver string, owner metav1.OwnerReference) []reconcile.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.driver(driver)
	before := d.owner.UID
	d.owner = owner
	if before == "" || before == owner.UID {
		return nil
	}
	return targets(driver, d.nodes)
}

// On reports whether kube-scheduler looks at the driver's capacity.
func (n *capacityNodes) On(driver string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.driver(driver).on
}

// SetOn records whether kube-scheduler looks at the driver's capacity.
func (n *capacityNodes) SetOn(driver string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.driver(driver).on = on
}

// SetNodes records on which nodes the driver has storage, and returns those
// that came or went.
func (n *capacityNodes) SetNodes(driver string, names []string) []reconcile.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.driver(driver)
	moved, nodes := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		nodes[name] = true
		moved[name] = !d.nodes[name]
	}
	for name := range d.nodes {
		if !nodes[name] {
			moved[name] = true
		}
	}
	if d.unseen == nil {
		d.unseen = map[string]bool{}
		for name := range nodes {
			d.unseen[name] = true
		}
	}
	d.nodes = nodes
	return targets(driver, moved)
}

// targets returns the requests for the nodes that are true.
func targets(driver string, nodes map[string]bool) []reconcile.Request {
	var requests []reconcile.Request
	for name, yes := range nodes {
		if yes {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: driver, Name: name}})
		}
	}
	return requests
}

// Has reports whether the driver has storage on the node.
func (n *capacityNodes) Has(target reconcile.Request) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.driver(target.Namespace).nodes[target.Name]
}

// Of returns all nodes of the driver.
func (n *capacityNodes) Of(driver string) []reconcile.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return targets(driver, n.driver(driver).nodes)
}

// Changed records that something happened on the node just now.
func (n *capacityNodes) Changed(target reconcile.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changed[target] = n.clock.Now()
}

// SinceChange returns how long ago that was; for ever when it is not known.
func (n *capacityNodes) SinceChange(target reconcile.Request) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.changed[target]
	if !ok {
		return 1<<63 - 1
	}
	return n.clock.Since(at)
}

// Outage records whether the node could be asked, and returns for how long it
// could not.
func (n *capacityNodes) Outage(target reconcile.Request, failed bool) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !failed {
		delete(n.outages, target)
		return 0
	}
	if _, ok := n.outages[target]; !ok {
		n.outages[target] = n.clock.Now()
	}
	return n.clock.Since(n.outages[target])
}

// Outages returns how many nodes of the driver can't be asked.
func (n *capacityNodes) Outages(driver string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for target := range n.outages {
		if target.Namespace == driver {
			count++
		}
	}
	return count
}

// Looked records that the node was looked at.
func (n *capacityNodes) Looked(target reconcile.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.driver(target.Namespace).unseen, target.Name)
}

// Complete reports whether all nodes that the driver had at first were looked at.
func (n *capacityNodes) Complete(driver string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.driver(driver)
	return d.unseen != nil && len(d.unseen) == 0
}

// Forget drops what is known of a node that is gone.
func (n *capacityNodes) Forget(target reconcile.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.changed, target)
	delete(n.outages, target)
}
