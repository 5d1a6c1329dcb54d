package controllers

import (
	"context"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// capacityCollector computes the series about published capacity when they are
// asked for. There are none per node: that many series would cost more than what
// they tell.
type capacityCollector struct {
	publisher atomic.Pointer[CapacityPublisher]

	goal, current, obsolete, available, largest, unreachable *prometheus.Desc
}

func newCapacityCollector() *capacityCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("berth_capacity_"+name, help, labels, nil)
	}
	return &capacityCollector{
		goal:        desc("objects_goal", "CSIStorageCapacity objects there should be: one for each node with storage and class that waits for its first consumer. Broken down by driver.", "driver"),
		current:     desc("objects_current", "CSIStorageCapacity objects there are for such nodes and classes. Broken down by driver.", "driver"),
		obsolete:    desc("objects_obsolete", "CSIStorageCapacity objects there are for nodes without storage, or classes that are gone. Broken down by driver.", "driver"),
		available:   desc("available_bytes", "Room that is published for a class, over all nodes. Broken down by driver and class.", "driver", "class"),
		largest:     desc("largest_volume_bytes", "The largest volume that some node is published to have room for. Broken down by driver and class.", "driver", "class"),
		unreachable: desc("unreachable_nodes", "Nodes that can't be asked how much room they have. Broken down by driver.", "driver"),
	}
}

// follow has the series tell of p from now on.
func (c *capacityCollector) follow(p *CapacityPublisher) { c.publisher.Store(p) }

// Describe implements prometheus.Collector.
func (c *capacityCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.goal, c.current, c.obsolete, c.available, c.largest, c.unreachable} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. It reads nothing but the cache.
func (c *capacityCollector) Collect(metrics chan<- prometheus.Metric) {
	p := c.publisher.Load()
	if p == nil {
		return
	}
	for _, driver := range nodeLocalNames(p.Drivers) {
		if err := c.collect(context.Background(), p, driver, metrics); err != nil {
			metrics <- prometheus.NewInvalidMetric(c.current, err)
		}
	}
}

// classRoom is what is published for a class over all nodes.
type classRoom struct{ available, largest float64 }

func (c *capacityCollector) collect(ctx context.Context, p *CapacityPublisher, driver string, metrics chan<- prometheus.Metric) error {
	classes, err := p.classes(ctx, driver)
	if err != nil {
		return err
	}
	var objects storagev1.CSIStorageCapacityList
	err = p.Client.List(ctx, &objects, client.InNamespace(p.Namespace), client.MatchingLabels{labelCapacityDriver: driver}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return err
	}
	nodes := p.nodes.Of(driver)
	served := map[string]bool{}
	for _, target := range nodes {
		served[target.Name] = true
	}
	rooms := map[string]*classRoom{}
	for _, class := range classes {
		rooms[class.Name] = &classRoom{}
	}
	current := 0
	for i := range objects.Items {
		o := &objects.Items[i]
		room := rooms[o.StorageClassName]
		if room == nil || !served[o.Annotations[annCapacityNode]] {
			continue
		}
		current++
		if o.Capacity != nil && o.MaximumVolumeSize != nil && o.Capacity.Value() != unlimitedRoom {
			room.available += float64(o.Capacity.Value())
			room.largest = max(room.largest, float64(o.MaximumVolumeSize.Value()))
		}
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(c.goal, float64(len(nodes)*len(classes)), driver)
	gauge(c.current, float64(current), driver)
	gauge(c.obsolete, float64(len(objects.Items)-current), driver)
	gauge(c.unreachable, float64(p.nodes.Outages(driver)), driver)
	for class, room := range rooms {
		gauge(c.available, room.available, driver, class)
		gauge(c.largest, room.largest, driver, class)
	}
	return nil
}
