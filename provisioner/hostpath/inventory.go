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
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
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
	path := sourcePath(volume)
	record := provisioner.Record{Volume: volume.Name, Place: place(about[AnnNode], path), Pool: about[AnnPoolID], Path: path}
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
	node, err := d.serving(ctx, node, record.Pool, "/"+path)
	if err != nil {
		return fmt.Errorf("discard volume %s: %w", record.Volume, err)
	}
	return d.on(wire.AttachPoolID(ctx, record.Pool), node, func(ctx context.Context, server csi.ControllerClient) error {
		_, err := server.DeleteVolume(wire.AttachIfEmpty(ctx, "/"+path), &csi.DeleteVolumeRequest{VolumeId: record.ID})
		return err
	})
}

// Volumes yields what the nodes have records of. A node, or a directory of a pool,
// that can't be read does not hide the others.
func (d *Driver) Volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return func(yield func(provisioner.Record, error) bool) {
		names, err := d.names(ctx)
		if err != nil {
			yield(provisioner.Record{}, err)
			return
		}
		for some := range slices.Chunk(slices.Sorted(slices.Values(names)), nodesAtOnce) {
			for _, l := range d.listAll(ctx, some) {
				for _, record := range l.records {
					if !yield(record, nil) {
						return
					}
				}
				for _, unread := range l.unread {
					if !yield(provisioner.Record{}, unread) {
						return
					}
				}
			}
		}
	}
}

// listing is what a node has records of, as far as they can be read, and what else
// it may have.
type listing struct {
	records []provisioner.Record
	unread  []*provisioner.UnreadError
}

// listAll lists the volumes of nodes, all at once.
func (d *Driver) listAll(ctx context.Context, nodes []string) []listing {
	all := make([]listing, len(nodes))
	group := errgroup.Group{}
	for i, node := range nodes {
		group.Go(func() error {
			all[i] = d.list(ctx, node)
			return nil
		})
	}
	_ = group.Wait()
	return all
}

func (d *Driver) list(ctx context.Context, node string) listing {
	var (
		l       listing
		reports []wire.PoolReport
	)
	for token := ""; ; {
		page, header := &csi.ListVolumesResponse{}, metadata.MD{}
		err := d.on(ctx, node, func(ctx context.Context, server csi.ControllerClient) (err error) {
			page, err = server.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: token}, grpc.Header(&header))
			return err
		})
		reports = append(reports, d.learn(node, header, false)...)
		if errors.Is(err, ErrNoServer) {
			return l // it has just gone
		}
		if err != nil {
			l.unread = unreadOf(node, reports, fmt.Errorf("list the volumes of node %s: %w", node, err))
			return l
		}
		for _, entry := range page.GetEntries() {
			l.records = append(l.records, recordOf(node, entry.GetVolume()))
		}
		if token = page.GetNextToken(); token == "" {
			d.pools.learn(node, reports, true)
			return l
		}
	}
}

// unreadOf says which directories could not be read, which a server tells with the
// error that ends a listing. Where none is told it may have been any.
func unreadOf(node string, reports []wire.PoolReport, err error) []*provisioner.UnreadError {
	var unread []*provisioner.UnreadError
	for _, r := range reports {
		if r.Unread {
			unread = append(unread, &provisioner.UnreadError{Place: place(node, r.Directory+"/"), Err: err})
		}
	}
	var remote *wire.RemoteError
	answered := errors.As(err, &remote) && remote.Code != codes.DeadlineExceeded && remote.Code != codes.Canceled
	if len(unread) == 0 || !answered {
		return []*provisioner.UnreadError{{Place: place(node, "/"), Err: err}}
	}
	return unread
}

func recordOf(node string, v *csi.Volume) provisioner.Record {
	about := v.GetVolumeContext()
	namespace, claim, _ := strings.Cut(about[wire.ContextClaim], "/")
	// A time that can't be read is the zero time: as old as can be. The sweeper
	// asks Kubernetes before it believes in an orphan.
	created, _ := time.Parse(time.RFC3339Nano, about[wire.ContextCreated])
	path := filepath.Join(about[wire.ContextDirectory], about[wire.ContextPath])
	return provisioner.Record{
		Volume:   about[wire.ContextVolume],
		Claim:    types.NamespacedName{Namespace: namespace, Name: claim},
		ClaimUID: types.UID(about[wire.ContextClaimUID]),
		Created:  created,
		ID:       v.GetVolumeId(),
		Place:    place(node, path),
		Pool:     about[wire.ContextPoolID],
		Path:     path,
	}
}

// Close closes the servers in this process. The driver must not be in use.
func (d *Driver) Close() error {
	if closer, ok := d.options.Nodes.(interface{ Close() error }); ok {
		return closer.Close()
	}
	return nil
}
