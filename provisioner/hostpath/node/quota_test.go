package node_test

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/internal/quotatest"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// TestWhatAVolumeMayStillWriteIsNotPromisedAgain works on this machine's disk, and
// so with what others have on it.
func TestWhatAVolumeMayStillWriteIsNotPromisedAgain(t *testing.T) {
	quota := quotatest.New()
	o := options(t, 1)
	o.Quota, o.Limits = quota, node.Limits{Overcommit: 1}
	o.Pools["other"] = []string{released(t)}
	s := newServer(t, o)
	c := dial(t, s)
	room := func() int64 {
		resp, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: map[string]string{wire.ParamPool: wire.DefaultPool}})
		must(t, err)
		return resp.GetAvailableCapacity()
	}
	all := room()
	// Others write while this runs: numbers are as good as a sixteenth of the room.
	around := func(want int64) {
		t.Helper()
		if got := room(); got < want-all/16 || got > want+all/16 {
			t.Errorf("room = %d of %d, want about %d", got, all, want)
		}
		if got := s.Stats(t.Context())[1].Room; got < want-all/16 || got > want+all/16 {
			t.Errorf("the statistics say %d of %d, want about %d", got, all, want)
		}
	}
	half := all / 2
	v := create(t, c, ask("v1", half, wire.ParamPool, "other"))
	around(all - half)
	_, err := c.CreateVolume(t.Context(), ask("v2", all/4*3))
	wantCode(t, err, codes.ResourceExhausted, "promised to volumes that have not written it")
	_, err = c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: v.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: half + all/4*3},
	})
	wantCode(t, err, codes.ResourceExhausted, "promised to volumes that have not written it")

	quota.Write(half, half/2)
	around(all - half/2)
	quota.Write(half, 10*half) // what it holds beyond its size was not promised
	around(all)
	quota.Write(half, 0)
	quota.SwitchOff("switched off")
	around(all) // nobody knows
	quota.SwitchOff("")
	remove(t, c, v.GetVolumeId())
	around(all)
}

func TestVolumesThatAreLimitedAreMeasured(t *testing.T) {
	quota := quotatest.New()
	o := options(t, 1)
	o.Quota = quota
	s := newServer(t, o)
	c := dial(t, s)
	limited, free := ask("pvc-1", gi), ask("pvc-2", 2*gi, wire.ParamQuota, "none")
	for _, req := range []*csi.CreateVolumeRequest{limited, free} {
		req.Parameters[wire.ParamClaimNamespace], req.Parameters[wire.ParamClaimName] = "ns", "claim-of-"+req.GetName()
		create(t, c, req)
	}
	quota.Write(gi, 300)
	labels := "namespace=ns persistentvolumeclaim=claim-of-pvc-1 pool=default volume=pvc-1"
	want := map[string]float64{
		"berth_volume_used_bytes " + labels:  300,
		"berth_volume_limit_bytes " + labels: gi,
	}
	if diff := cmp.Diff(want, volumeSeries(t, node.NewCollector(s, true))); diff != "" {
		t.Errorf("series of volumes (-want +got):\n%s", diff)
	}
	if got := volumeSeries(t, node.NewCollector(s, false)); len(got) > 0 {
		t.Errorf("series of volumes that nobody wants: %v", got)
	}
}

// volumeSeries returns the series of volumes, by their names and labels.
func volumeSeries(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	must(t, err)
	series := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "berth_volume_") {
			continue
		}
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			series[name] = m.GetGauge().GetValue()
		}
	}
	return series
}
