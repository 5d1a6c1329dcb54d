package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

const (
	// identifiedPerSecond is how many volumes a second are written that don't say
	// which pool they lie in, identifiedPerSweep how many in one sweep: after an
	// upgrade that is all of them, and nobody waits for it.
	identifiedPerSecond = 50
	identifiedPerSweep  = 5000
	// identifyFailures is after how many failed writes a sweep tries no more.
	identifyFailures = 10
)

// identify has volumes say which pool they lie in that don't: those that were made
// before there was an annotation for that.
func (s *OrphanSweeper) identify(ctx context.Context, driver provisioner.Driver, seen *survey) error {
	keeper, ok := provisioner.As[provisioner.PoolKeeper](driver)
	if !ok {
		return nil
	}
	var failed []error
	limit, written := rate.NewLimiter(identifiedPerSecond, 1), 0
	for _, m := range append(seen.unnamed, seen.adoptable()...) {
		annotations := keeper.Identify(ctx, m.volume, m.record)
		if len(annotations) == 0 {
			continue
		}
		if written++; written > identifiedPerSweep || len(failed) >= identifyFailures {
			break
		}
		if err := limit.Wait(ctx); err != nil {
			return err
		}
		if err := s.annotate(ctx, m.volume, annotations); err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", m.volume.Name, err))
		}
	}
	return errors.Join(failed...)
}

// annotate adds annotations to this very volume.
func (s *OrphanSweeper) annotate(ctx context.Context, volume *corev1.PersistentVolume, annotations map[string]string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": volume.UID, "annotations": annotations}})
	if err != nil {
		return fmt.Errorf("encode annotations: %w", err)
	}
	err = s.Client.Patch(ctx, volume.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("say which pool it lies in: %w", err)
	}
	return nil
}

// countMissing counts the volumes that the driver called name should have storage
// for and has no record of. What could not be read may have any.
func (s *OrphanSweeper) countMissing(ctx context.Context, name string, inventory provisioner.Inventory, seen *survey) error {
	var volumes corev1.PersistentVolumeList
	if err := s.Client.List(ctx, &volumes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	served, err := s.servedNodes(ctx, name)
	if err != nil {
		return err
	}
	for _, m := range seen.elsewhere {
		if compareStorage(m.record, inventory.RecordOf(m.volume)) != storageStray {
			seen.found[m.volume.Name] = m.record.Pool
		}
	}
	driver, _ := s.Drivers.Get(name)
	guard, guarded := provisioner.As[libcontroller.DeletionGuard](driver)
	missing := 0
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		_, found := seen.found[volume.Name]
		switch {
		case found || volume.Annotations[volumehelpers.AnnDynamicallyProvisioned] != name:
		case volume.DeletionTimestamp != nil || s.Clock.Since(volume.CreationTimestamp.Time) < s.Grace:
		case !volume.CreationTimestamp.Time.Before(seen.began.Add(-time.Second)): // of the API server's clock, whole seconds
		case seen.isUnread(inventory.RecordOf(volume).Place):
		case served != nil && !served[nodeOf(s.Drivers, volume)]:
			// Nobody was asked. LostNodeReconciler tells of nodes that are gone.
		case guarded && !guard.ShouldDelete(ctx, volume):
		default:
			missing++
			log.FromContext(ctx).Info("A volume has no storage that the driver knows of; see docs/operations.md", "driver", name, "volume", volume.Name)
		}
	}
	s.Metrics.missing.WithLabelValues(name).Set(float64(missing))
	return nil
}

// servedNodes returns the nodes that the driver called name can ask for storage; nil
// when its storage is on no nodes.
func (s *OrphanSweeper) servedNodes(ctx context.Context, name string) (map[string]bool, error) {
	local, ok := nodeLocalDriver(s.Drivers, name)
	if !ok {
		return nil, nil
	}
	names, err := local.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	served := make(map[string]bool, len(names))
	for _, node := range names {
		served[node] = true
	}
	return served, nil
}
