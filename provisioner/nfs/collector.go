package nfs

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-storage/berth/provisioner/directory"
)

// scrapePatience is how long a scrape may wait for a server: longer than it takes
// to find that a server is silent (DefaultAnswerTimeout), and less than Prometheus
// waits.
const scrapePatience = 8 * time.Second

// Collector shows what a driver knows of its servers, and what their shares hold
// at each scrape. A share that was not used yet, and one whose server does not
// answer, has no series; what a replica that waits to become the leader has not
// looked at it does not tell.
type Collector struct{ driver *Driver }

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns the collector for a driver.
func NewCollector(d *Driver) *Collector { return &Collector{driver: d} }

func shareDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("berth_nfs_share_"+name, help, []string{"server", "share"}, nil)
}

var (
	descReachable = prometheus.NewDesc("berth_nfs_server_reachable",
		"Whether an NFS server answered when it was asked last: 1 or 0. Broken down by server: host and port, or the directory where a share is mounted.",
		[]string{"server"}, nil)
	descCalls = prometheus.NewDesc("berth_nfs_server_calls_in_flight",
		"Operations on an NFS server that are under way; 16 at most. Broken down by server.",
		[]string{"server"}, nil)

	descCapacity = shareDesc("capacity_bytes", "Size of the filesystem that holds a share.")
	descFree     = shareDesc("free_bytes", "What is free on that filesystem.")
	descVolumes  = shareDesc("volumes", "Volumes on a share.")
	descDamaged  = shareDesc("damaged_markers", "Volumes whose ownership marker can't be read.")
	descTrash    = shareDesc("trash_entries", "Deleted directories that wait to be removed.")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descReachable, descCalls, descCapacity, descFree, descVolumes, descDamaged, descTrash} {
		ch <- d
	}
}

// shareStats are what a share holds.
type shareStats struct {
	directory.Space
	directory.Stats
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	type place struct{ server, share string }
	seen := map[place]bool{}
	var asked sync.WaitGroup
	for _, s := range c.driver.shares.all() {
		// The same share may be reached in several ways, by version.
		at := place{s.address(), s.Path}
		if !s.Opened() || seen[at] {
			continue
		}
		seen[at] = true
		asked.Go(func() {
			stats, err := callFor(ctx, s, s.scrapePatience(), s.stats)
			if err != nil {
				return // that the server does not answer is told below
			}
			gauge(descCapacity, float64(stats.Total), at.server, at.share)
			gauge(descFree, float64(stats.Free), at.server, at.share)
			gauge(descVolumes, float64(stats.Volumes), at.server, at.share)
			gauge(descDamaged, float64(stats.Damaged), at.server, at.share)
			gauge(descTrash, float64(stats.Trash), at.server, at.share)
		})
	}
	asked.Wait()
	for server, g := range c.driver.shares.servers() {
		reachable := 0.0
		if g.Open() {
			reachable = 1
		}
		gauge(descReachable, reachable, server)
		gauge(descCalls, float64(g.Inside()), server)
	}
}

// scrapePatience is after how long a server that does not answer a scrape counts as
// silent. One that is slow with all that a scrape asks for does not.
func (s *share) scrapePatience() time.Duration {
	if s.mount != "" {
		return scrapePatience
	}
	return longPatience
}

func (s *share) stats(ctx context.Context) (stats shareStats, err error) {
	if stats.Space, err = s.Space(ctx); err == nil {
		stats.Stats, err = s.Stats(ctx)
	}
	return stats, err
}
