package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/test/nfsserver"
)

const mode = 0o2770

// driver is berth's.
type driver struct {
	*nfs.Driver
	class   *storagev1.StorageClass
	volumes sync.Map // of int to *corev1.PersistentVolume
}

func newDriver(_ context.Context, s *site, version, name string) (way, error) {
	share, err := s.share(name, version)
	if err != nil {
		return nil, err
	}
	d, err := nfs.New(nfs.Options{Log: logr.Discard()})
	if err != nil {
		return nil, err
	}
	return &driver{Driver: d, class: &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "bench"},
		Parameters: map[string]string{
			"server": nfsserver.Address, "share": share, "nfsVersion": version, "mode": fmt.Sprintf("%o", mode),
			"port": strconv.Itoa(int(s.server.Port)), "mountPort": strconv.Itoa(int(s.server.MountPort)),
		},
	}}, nil
}

func (d *driver) create(ctx context.Context, i int) error {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprint("claim-", i), UID: types.UID(fmt.Sprint("uid-", i))},
		Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		}},
	}
	volume, _, err := d.Provision(ctx, controller.ProvisionOptions{StorageClass: d.class, PVName: fmt.Sprint("pvc-", i), PVC: claim})
	if err != nil {
		return err
	}
	volume.Spec.ClaimRef = &corev1.ObjectReference{UID: claim.UID}
	d.volumes.Store(i, volume)
	return nil
}

func (d *driver) remove(ctx context.Context, i int) error {
	volume, ok := d.volumes.Load(i)
	if !ok {
		return fmt.Errorf("volume %d was not made", i)
	}
	return d.Delete(ctx, volume.(*corev1.PersistentVolume))
}

func (d *driver) close() error { return d.Close() }

// bare is the client on its own.
type bare struct {
	client           *client.Client
	pool             *client.Pool
	base, books, bin *client.Dir
	// keepsBooks says that there is a marker for each volume.
	keepsBooks bool
}

func newClient(ctx context.Context, s *site, version, name string) (way, error) {
	return newBare(ctx, s, version, name, true)
}

func newMkdir(ctx context.Context, s *site, version, name string) (way, error) {
	return newBare(ctx, s, version, name, false)
}

func newBare(ctx context.Context, s *site, version, name string, keepsBooks bool) (_ way, err error) {
	share, err := s.share(name, version)
	if err != nil {
		return nil, err
	}
	b := &bare{pool: client.NewPool(client.PoolOptions{}), keepsBooks: keepsBooks}
	defer func() { //nolint:contextcheck // it is given up, whatever ctx says
		if err != nil {
			_ = b.close()
		}
	}()
	b.client, err = client.Dial(ctx, client.Options{
		Server: nfsserver.Address, Share: share, Version: client.Version(version), Port: s.server.Port, MountPort: s.server.MountPort, Pool: b.pool,
	})
	if err != nil {
		return nil, err
	}
	if b.base, err = b.client.Root(ctx); err != nil {
		return nil, err
	}
	for name, into := range map[string]**client.Dir{"books": &b.books, "bin": &b.bin} {
		if err := b.base.Mkdir(ctx, name, 0o700); err != nil {
			return nil, err
		}
		if *into, err = b.base.Open(ctx, name); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// record is as long as a marker.
var record = make([]byte, 400)

func (b *bare) create(ctx context.Context, i int) error {
	name := fmt.Sprint("volume-", i)
	if b.keepsBooks {
		if err := b.books.WriteFile(ctx, name, ".tmp-", record); err != nil {
			return err
		}
	}
	if err := b.base.Mkdir(ctx, name, 0o700); err != nil {
		return err
	}
	dir, err := b.base.Open(ctx, name)
	if err != nil {
		return err
	}
	return dir.SetAttr(ctx, client.SetAttr{Mode: new(uint32(mode))})
}

// remove leaves the directory in the bin, as the driver leaves it in the trash.
func (b *bare) remove(ctx context.Context, i int) error {
	name := fmt.Sprint("volume-", i)
	if b.keepsBooks {
		if _, err := b.books.ReadFile(ctx, name, int64(len(record))); err != nil {
			return err
		}
		if _, err := b.base.Lstat(ctx, name); err != nil {
			return err
		}
	}
	if err := b.base.Rename(ctx, name, b.bin, name); err != nil {
		return err
	}
	if !b.keepsBooks {
		return b.bin.Rmdir(ctx, name)
	}
	return b.books.Remove(ctx, name)
}

func (b *bare) close() error {
	var err error
	if b.client != nil {
		err = b.client.Close()
	}
	b.pool.Close()
	return errors.Join(err)
}
