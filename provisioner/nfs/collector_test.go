package nfs_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/test/nfsserver"
)

// scrape returns the values of all series by name and labels, but for those of
// sizes, which are the machine's: of them it tells whether they are there.
func (b *bench) scrape() map[string]float64 {
	b.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(nfs.NewCollector(b.driver))
	families, err := registry.Gather()
	must(b.t, err)
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			key := family.GetName()
			for _, label := range m.GetLabel() {
				key += " " + label.GetValue()
			}
			values[key] = m.GetGauge().GetValue()
			if bytes := m.GetGauge().GetValue(); bytes > 1<<20 {
				values[key] = 1
			}
		}
	}
	return values
}

// TestMetricsOfSharesAndServers: a share that nobody has used has none, and a server
// that is silent keeps a scrape no longer than Prometheus waits.
func TestMetricsOfSharesAndServers(t *testing.T) {
	b := newBench(t, "4.1", nfsserver.Export{})
	if values := b.scrape(); len(values) > 0 {
		t.Errorf("before the first volume: %v", values)
	}
	b.provision(b.ask("one"))
	must(t, b.driver.Delete(b.ctx, b.provision(b.ask("two"))))
	server := fmt.Sprintf("%s:%d", nfsserver.Address, b.server.Port)
	share := " " + server + " " + pseudo
	want := map[string]float64{
		"berth_nfs_server_reachable " + server: 1, "berth_nfs_server_calls_in_flight " + server: 0,
		"berth_nfs_share_capacity_bytes" + share: 1, "berth_nfs_share_free_bytes" + share: 1,
		"berth_nfs_share_volumes" + share: 1, "berth_nfs_share_damaged_markers" + share: 0, "berth_nfs_share_trash_entries" + share: 1,
	}
	if diff := cmp.Diff(want, b.scrape()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	must(t, b.server.Pause())
	begun := time.Now()
	values := b.scrape()
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("a scrape took %s", took)
	}
	delete(values, "berth_nfs_server_calls_in_flight "+server)
	if diff := cmp.Diff(map[string]float64{"berth_nfs_server_reachable " + server: 0}, values); diff != "" {
		t.Errorf("of a silent server (-want +got):\n%s", diff)
	}
	must(t, b.server.Resume())
	eventually(t, func() error {
		if diff := cmp.Diff(want, b.scrape()); diff != "" {
			return fmt.Errorf("of a server that is back (-want +got):\n%s", diff)
		}
		return nil
	})
}
