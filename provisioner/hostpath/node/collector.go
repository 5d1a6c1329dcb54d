package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapePatience is how long a scrape may wait for disks.
const scrapePatience = 10 * time.Second

// Collector shows what a server's pools hold, as they are at each scrape. A
// directory that can't be used has berth_pool_directory_usable 0 and nothing
// else, one that was not used yet the size of its filesystem only.
type Collector struct {
	server *Server
	// volumes says that there are series of each volume, too.
	volumes bool
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns the collector for a server. volumes says whether it shows
// each volume whose size is enforced, at the price of two series a volume.
func NewCollector(s *Server, volumes bool) *Collector { return &Collector{server: s, volumes: volumes} }

func poolDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("berth_pool_"+name, help, []string{"pool", "directory"}, nil)
}

var (
	descUsable   = poolDesc("directory_usable", "Whether a directory of a pool can be used: 1, or 0 when its disk is not mounted, is another, or does not answer.")
	descCapacity = poolDesc("capacity_bytes", "Size of the filesystem that holds a directory of a pool.")
	descFree     = poolDesc("free_bytes", "What is free on that filesystem.")
	descReserved = poolDesc("reserved_bytes", "What volumes are not promised of that filesystem.")
	descPromised = poolDesc("promised_bytes", "Sum of the sizes of the volumes in a directory of a pool.")
	descRoom     = poolDesc("available_bytes", "What may still be promised to volumes on that filesystem.")
	descVolumes  = poolDesc("volumes", "Volumes in a directory of a pool.")
	descDamaged  = poolDesc("damaged_markers", "Volumes whose ownership marker can't be read.")
	descOpen     = poolDesc("directory_open", "Whether other users of the node than a directory's owner and group can get into it: 1, or 0 as it should be.")
	descTrash    = poolDesc("trash_entries", "Deleted directories that wait to be removed.")

	descUsed  = volumeDesc("used_bytes", "What the files of a volume occupy, where its size is enforced.")
	descLimit = volumeDesc("limit_bytes", "What they may occupy.")
)

func volumeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("berth_volume_"+name, help, []string{"namespace", "persistentvolumeclaim", "volume", "pool"}, nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUsable, descCapacity, descFree, descReserved, descPromised, descRoom, descVolumes, descDamaged, descOpen, descTrash, descUsed, descLimit} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	for _, d := range c.server.Stats(ctx) {
		gauge := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, d.Pool, d.Directory)
		}
		if d.Err != nil {
			gauge(descUsable, 0)
			continue
		}
		gauge(descUsable, 1)
		gauge(descCapacity, float64(d.Total))
		gauge(descFree, float64(d.Free))
		gauge(descReserved, float64(d.Reserve))
		if !d.Opened {
			continue
		}
		gauge(descPromised, float64(d.Promised))
		gauge(descRoom, float64(d.Room))
		gauge(descVolumes, float64(d.Volumes))
		gauge(descDamaged, float64(d.Damaged))
		gauge(descTrash, float64(d.Trash))
		gauge(descOpen, oneIf(d.OpenBase))
	}
	if c.volumes {
		c.collectVolumes(ctx, ch)
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (c *Collector) collectVolumes(ctx context.Context, ch chan<- prometheus.Metric) {
	for u, err := range c.server.Usage(ctx) {
		if err != nil {
			c.server.options.Log.Error(err, "Measure volumes")
			continue
		}
		if u.Enforced {
			labels := []string{u.Claim.Namespace, u.Claim.Name, u.Volume, u.Pool}
			ch <- prometheus.MustNewConstMetric(descUsed, prometheus.GaugeValue, float64(u.UsedBytes), labels...)
			ch <- prometheus.MustNewConstMetric(descLimit, prometheus.GaugeValue, float64(u.LimitBytes), labels...)
		}
	}
}
