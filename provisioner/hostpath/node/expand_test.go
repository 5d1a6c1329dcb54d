package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

func TestExpansionPromisesMoreAndNeverLess(t *testing.T) {
	c := onDisks(t, node.Limits{Overcommit: 1}, disk(t, "40m"))
	v := create(t, c, ask("pvc-1", 10*mi))
	expand := func(bytes int64) (int64, error) {
		resp, err := c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}})
		return resp.GetCapacityBytes(), err
	}
	for _, step := range []struct{ ask, get int64 }{{20 * mi, 20 * mi}, {20 * mi, 20 * mi}, {5 * mi, 20 * mi}} {
		if got, err := expand(step.ask); err != nil || got != step.get {
			t.Errorf("expand to %d = %d, %v, want %d", step.ask, got, err, step.get)
		}
	}
	create(t, c, ask("pvc-2", 10*mi))
	_, err := expand(35 * mi)
	wantCode(t, err, codes.ResourceExhausted, "no room")
	_, err = expand(400 * mi)
	wantCode(t, err, codes.OutOfRange, "in all")
	create(t, c, ask("pvc-3", 10*mi)) // all there is is promised
	_, err = expand(21 * mi)
	wantCode(t, err, codes.ResourceExhausted, "no room")
	if got, err := expand(20*mi + 1); err != nil || got != 20*mi+1 {
		t.Errorf("a byte more, on a full disk: %d, %v", got, err)
	}
	_, err = c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId()})
	wantCode(t, err, codes.InvalidArgument)
}

// TestExpansionThatBreaksOffIsNoRefusal has no room for the marker.
func TestExpansionThatBreaksOffIsNoRefusal(t *testing.T) {
	where := disk(t, "40m,nr_inodes=64")
	c := onDisks(t, node.DefaultLimits, where)
	v := create(t, c, ask("pvc-1", 10*mi))
	for n := 0; ; n++ {
		if err := os.WriteFile(filepath.Join(where, fmt.Sprint(n)), nil, 0o600); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: 20 * mi}})
	wantCode(t, err, codes.Internal, "no space left")
}
