package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
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
		if took := time.Since(began); took > patience {
			t.Errorf("it took %s", took)
		}
		began = time.Now()
		_, err = create(ctx, "pvc-2", "dead")
		if took := time.Since(began); took > patience {
			t.Errorf("it took %s until the dead disk was given up", took)
		}
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

// sickDisk is a filesystem whose system calls do not end while it is ill.
type sickDisk struct {
	directory.Filesystem
	mu    sync.Mutex
	ill   bool
	cured chan struct{}
	calls int
}

func (d *sickDisk) Root(ctx context.Context) (directory.Dir, error) {
	d.wait()
	return d.Filesystem.Root(ctx)
}

func (d *sickDisk) Space(ctx context.Context) (directory.Space, error) {
	d.wait()
	return d.Filesystem.Space(ctx)
}

func (d *sickDisk) wait() {
	d.mu.Lock()
	d.calls++
	ill := d.ill
	d.mu.Unlock()
	if ill {
		<-d.cured
	}
}

func (d *sickDisk) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (d *sickDisk) fallIll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ill = true
}

func (d *sickDisk) recover() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ill = false
	close(d.cured)
}

// TestADiskThatHangsIsNotWaitedForAgain: while the pool has another. Only a volume
// that lies on it waits, and is never made twice.
func TestADiskThatHangsIsNotWaitedForAgain(t *testing.T) {
	good, sick := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{NodeName: "node-1", Pools: map[string][]string{"default": {good, sick}}})
		if err != nil {
			t.Fatal(err)
		}
		local, err := directory.NewLocal(sick, directory.LocalOptions{})
		if err != nil {
			t.Fatal(err)
		}
		disk := &sickDisk{Filesystem: local, cured: make(chan struct{})}
		var on *place
		for _, p := range s.ledger.places {
			if p.base == sick {
				on = p
				p.Pool = directory.NewPool(disk, directory.Options{Name: "default", Driver: wire.PluginName})
			}
		}
		create := func(name string) (string, time.Duration, error) {
			began := time.Now()
			made, err := s.CreateVolume(wireContext(t.Context(), good), &csi.CreateVolumeRequest{
				Name: name, VolumeCapabilities: []*csi.VolumeCapability{{
					AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
					AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
				}},
				Parameters: map[string]string{wire.ParamClaimUID: "uid-" + name},
			})
			return made.GetVolume().GetVolumeContext()[wire.ContextDirectory], time.Since(began), err
		}
		wantMade := func(name string, within time.Duration) {
			t.Helper()
			if base, took, err := create(name); err != nil || base != good || took > within {
				t.Errorf("%s was made in %q after %s: %v", name, base, took, err)
			}
		}
		// One volume lies on it.
		before := directory.Spec{Volume: "pvc-0", ClaimUID: "uid-pvc-0", Path: "pvc-0", OnDelete: directory.OnDeleteDelete, Mode: 0o700}
		if _, err := on.Create(t.Context(), before); err != nil {
			t.Fatal(err)
		}

		disk.fallIll()
		wantMade("pvc-1", patience) // somebody has to find out, once
		for _, name := range []string{"pvc-2", "pvc-3"} {
			wantMade(name, 0)
		}
		began := time.Now()
		if room, err := s.GetCapacity(t.Context(), &csi.GetCapacityRequest{}); err != nil || room.GetAvailableCapacity() == 0 || time.Since(began) > 0 {
			t.Errorf("GetCapacity = %v, %v after %s", room, err, time.Since(began))
		}
		if base, _, err := create("pvc-0"); status.Code(err) != codes.Unavailable {
			t.Errorf("pvc-0 was made in %q too: %v", base, err)
		}
		time.Sleep(askAgain)
		wantMade("pvc-4", patience)
		wantMade("pvc-5", 0)
		calls := disk.asked()
		wantMade("pvc-6", 0)
		if more := disk.asked() - calls; more != 0 {
			t.Errorf("the disk was asked %d times", more)
		}

		disk.recover()
		synctest.Wait()
		if base, took, err := create("pvc-0"); err != nil || base != sick || took > 0 {
			t.Errorf("pvc-0 was made in %q after %s: %v", base, took, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestADiskOfWhichNothingIsKnownIsAskedEveryTime: it may hold the volume from
// before the start.
func TestADiskOfWhichNothingIsKnownIsAskedEveryTime(t *testing.T) {
	good, sick := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{NodeName: "node-1", Pools: map[string][]string{"default": {good, sick}}})
		if err != nil {
			t.Fatal(err)
		}
		disk := deadDisk{revived: make(chan struct{})}
		for _, p := range s.ledger.places {
			if p.base == sick {
				p.Pool = directory.NewPool(disk, directory.Options{Name: "default"})
			}
		}
		for i := range 3 {
			began := time.Now()
			_, err := s.CreateVolume(wireContext(t.Context(), good), &csi.CreateVolumeRequest{
				Name: fmt.Sprintf("pvc-%d", i), VolumeCapabilities: []*csi.VolumeCapability{{
					AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
					AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
				}},
			})
			if took := time.Since(began); err != nil || took != patience {
				t.Errorf("volume %d took %s: %v", i, took, err)
			}
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
