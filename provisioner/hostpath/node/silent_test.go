package node

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// deadDisk is a filesystem whose system calls do not end.
type deadDisk struct{ revived chan struct{} }

func (d deadDisk) Root(context.Context) (directory.Dir, error) {
	<-d.revived
	return nil, context.Canceled
}

func (d deadDisk) Space(context.Context) (directory.Space, error) {
	<-d.revived
	return directory.Space{}, context.Canceled
}

// TestADiskThatHangsCostsOnlyItsOwnVolumes: in time too.
func TestADiskThatHangsCostsOnlyItsOwnVolumes(t *testing.T) {
	good, dead := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := deadDisk{revived: make(chan struct{})}
		s, err := New(Options{NodeName: "node-1", Pools: map[string][]string{"default": {dead, good}, "dead": {dead + "-too"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.ledger.places {
			if p.base != good {
				p.Pool = directory.NewPool(disk, directory.Options{Name: p.pool})
			}
		}
		ctx := context.Background()
		create := func(ctx context.Context, name, pool string) (*csi.CreateVolumeResponse, error) {
			return s.CreateVolume(wireContext(ctx, good), &csi.CreateVolumeRequest{
				Name: name, Parameters: map[string]string{wire.ParamPool: pool},
				VolumeCapabilities: []*csi.VolumeCapability{{
					AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
					AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
				}},
			})
		}

		began := time.Now()
		made, err := create(ctx, "pvc-1", "default")
		if err != nil || made.GetVolume().GetVolumeContext()[wire.ContextDirectory] != good {
			t.Fatalf("CreateVolume = %v, %v", made, err)
		}
		if took := time.Since(began); took > 4*patience {
			t.Errorf("it took %s", took)
		}
		_, err = create(ctx, "pvc-2", "dead")
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has not answered for 5s") {
			t.Errorf("on the dead disk: %v", err)
		}
		// When all its places are taken, nobody waits for an answer any more.
		for range placeCalls {
			_, _ = create(ctx, "pvc-2", "dead")
		}
		_, err = create(ctx, "pvc-2", "dead")
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "does the disk of "+dead+"-too answer?") {
			t.Errorf("on the dead disk: %v", err)
		}
		room, err := s.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{wire.ParamPool: "dead"}})
		if err != nil || room.GetAvailableCapacity() != 0 {
			t.Errorf("GetCapacity = %v, %v", room, err)
		}
		for _, d := range s.Stats(ctx) {
			if (d.Err == nil) != (d.Directory == good) {
				t.Errorf("%s: %v", d.Directory, d.Err)
			}
		}
		if _, err := s.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.GetVolume().GetVolumeId()}); err != nil {
			t.Error(err)
		}
		close(disk.revived)
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// wireContext is ctx on the side of a server whose caller says that a directory
// may become a pool.
func wireContext(ctx context.Context, base string) context.Context {
	sent, _ := metadata.FromOutgoingContext(wire.AttachNewPool(ctx, base, ""))
	return metadata.NewIncomingContext(ctx, sent)
}
