package hostpath

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// place is the Place of a provisioner.Record: a node's name, which has no slash,
// and an absolute path there.
func place(node, path string) string { return node + path }

// RecordOf returns the record of volume. Its place is what pods see, which can't
// be edited, rather than what annotations say.
func (d *Driver) RecordOf(volume *corev1.PersistentVolume) provisioner.Record {
	about := volume.Annotations
	record := provisioner.Record{Volume: volume.Name, Place: place(about[AnnNode], sourcePath(volume))}
	if ref := volume.Spec.ClaimRef; ref != nil {
		record.Claim = types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
		record.ClaimUID = ref.UID
	}
	record.ID = wire.NewVolumeID(about[AnnPool], volume.Name, record.ClaimUID, about[request.AnnPath]).String()
	return record
}

// Discard drops a volume, as long as its directory is empty. It asks only the node
// that has it.
func (d *Driver) Discard(ctx context.Context, record provisioner.Record) error {
	node, path, ok := strings.Cut(record.Place, "/")
	if !ok || node == "" {
		return fmt.Errorf("discard volume %s: nothing says where it is", record.Volume)
	}
	if _, err := wire.ParseVolumeID(record.ID); err != nil {
		return fmt.Errorf("discard volume %s: %w", record.Volume, err)
	}
	return d.on(ctx, node, func(ctx context.Context, server csi.ControllerClient) error {
		_, err := server.DeleteVolume(wire.AttachIfEmpty(ctx, "/"+path), &csi.DeleteVolumeRequest{VolumeId: record.ID})
		return err
	})
}

// Volumes yields what the nodes have records of. A node, or a pool, that can't be
// read does not hide the others; its error comes last.
func (d *Driver) Volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return func(yield func(provisioner.Record, error) bool) {
		names, err := d.options.Nodes.Names(ctx)
		if err != nil {
			yield(provisioner.Record{}, fmt.Errorf("find the nodes that have pools: %w", err))
			return
		}
		var unread []error
		for some := range slices.Chunk(slices.Sorted(slices.Values(names)), nodesAtOnce) {
			records, err := d.recordsOf(ctx, some)
			if err != nil {
				unread = append(unread, err)
			}
			for _, record := range records {
				if !yield(record, nil) {
					return
				}
			}
		}
		if len(unread) > 0 {
			yield(provisioner.Record{}, errors.Join(unread...))
		}
	}
}

// recordsOf lists the volumes of nodes, all at once, as far as they can be read.
func (d *Driver) recordsOf(ctx context.Context, nodes []string) ([]provisioner.Record, error) {
	records := make([][]provisioner.Record, len(nodes))
	failed := make([]error, len(nodes))
	group := errgroup.Group{}
	for i, node := range nodes {
		group.Go(func() error {
			records[i], failed[i] = d.records(ctx, node)
			return nil
		})
	}
	_ = group.Wait()
	return slices.Concat(records...), errors.Join(failed...)
}

func (d *Driver) records(ctx context.Context, node string) ([]provisioner.Record, error) {
	var records []provisioner.Record
	for token := ""; ; {
		page := &csi.ListVolumesResponse{}
		err := d.on(ctx, node, func(ctx context.Context, server csi.ControllerClient) (err error) {
			page, err = server.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: token})
			return err
		})
		if errors.Is(err, ErrNoServer) {
			return records, nil // it has just gone
		}
		if err != nil {
			return records, fmt.Errorf("list the volumes of node %s: %w", node, err)
		}
		for _, entry := range page.GetEntries() {
			records = append(records, recordOf(node, entry.GetVolume()))
		}
		if token = page.GetNextToken(); token == "" {
			return records, nil
		}
	}
}

func recordOf(node string, v *csi.Volume) provisioner.Record {
	about := v.GetVolumeContext()
	namespace, claim, _ := strings.Cut(about[wire.ContextClaim], "/")
	// A time that can't be read is the zero time: as old as can be. The sweeper
	// asks Kubernetes before it believes in an orphan.
	created, _ := time.Parse(time.RFC3339Nano, about[wire.ContextCreated])
	return provisioner.Record{
		Volume:   about[wire.ContextVolume],
		Claim:    types.NamespacedName{Namespace: namespace, Name: claim},
		ClaimUID: types.UID(about[wire.ContextClaimUID]),
		Created:  created,
		ID:       v.GetVolumeId(),
		Place:    place(node, filepath.Join(about[wire.ContextDirectory], about[wire.ContextPath])),
	}
}

// Close closes the servers in this process. The driver must not be in use.
func (d *Driver) Close() error {
	if closer, ok := d.options.Nodes.(interface{ Close() error }); ok {
		return closer.Close()
	}
	return nil
}
