package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
)

// OrphanSweeper looks, time and again, for storage that no PersistentVolume and
// no pending claim knows: what a crash between making the storage and writing
// the volume leaves when the claim is deleted meanwhile, and volumes whose
// PersistentVolume an administrator deleted. It also looks for volumes whose
// storage nobody has a record of. It removes only what can't hold
// data (provisioner.Inventory, Discard); the rest is counted and named in the
// log.
type OrphanSweeper struct {
	// Client reads from the cache, APIReader from the API server.
	Client    client.Client
	APIReader client.Reader
	// Drivers that are a provisioner.Inventory are swept.
	Drivers *provisioner.Registry
	// Metrics counts orphans.
	Metrics *Metrics
	// Clock is the time of sweeps.
	Clock clock.WithTicker
	// Interval is the time between sweeps; the first comes at once.
	Interval time.Duration
	// Grace is how old storage must be to be an orphan. It covers the moment
	// between the making of storage and of its volume.
	Grace time.Duration
}

// +kubebuilder:rbac:groups="",resources=persistentvolumes;persistentvolumeclaims,verbs=get;list;watch

// NeedLeaderElection is true: only the leader's drivers make volumes.
func (s *OrphanSweeper) NeedLeaderElection() bool { return true }

// Start sweeps until ctx ends.
func (s *OrphanSweeper) Start(ctx context.Context) error {
	ticker := s.Clock.NewTicker(s.Interval)
	defer ticker.Stop()
	for {
		for _, name := range s.Drivers.Names() {
			if err := s.sweep(ctx, name); err != nil && ctx.Err() == nil {
				log.FromContext(ctx).Error(err, "Look for orphaned volumes", "driver", name)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// sweep looks through what one driver keeps.
func (s *OrphanSweeper) sweep(ctx context.Context, name string) error {
	driver, _ := s.Drivers.Get(name)
	inventory, ok := provisioner.As[provisioner.Inventory](driver)
	if !ok {
		return nil
	}
	left := 0
	recorded := map[storageKey]bool{}
	var failed []error
	for record, err := range inventory.Volumes(ctx) {
		if err != nil {
			failed = append(failed, fmt.Errorf("list volumes: %w", err))
			break
		}
		recorded[keyOf(record)] = true
		orphaned, err := s.isOrphan(ctx, inventory, record)
		if err != nil {
			failed = append(failed, err)
		}
		if orphaned && !s.discard(ctx, name, inventory, record) {
			left++
		}
	}
	s.Metrics.orphans.WithLabelValues(name).Set(float64(left))
	if len(failed) == 0 {
		failed = append(failed, s.countMissing(ctx, name, inventory, recorded))
	}
	return errors.Join(failed...)
}

// storageKey tells what a driver keeps of one volume from what it keeps of others,
// and of the same one elsewhere.
type storageKey struct{ volume, place string }

func keyOf(record provisioner.Record) storageKey { return storageKey{record.Volume, record.Place} }

// countMissing counts the volumes that the driver called name should have storage
// for and has no record of.
func (s *OrphanSweeper) countMissing(ctx context.Context, name string, inventory provisioner.Inventory, recorded map[storageKey]bool) error {
	var volumes corev1.PersistentVolumeList
	if err := s.Client.List(ctx, &volumes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	driver, _ := s.Drivers.Get(name)
	guard, guarded := provisioner.As[libcontroller.DeletionGuard](driver)
	missing := 0
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		switch {
		case volume.Annotations[volumehelpers.AnnDynamicallyProvisioned] != name || recorded[keyOf(inventory.RecordOf(volume))]:
		case volume.DeletionTimestamp != nil || s.Clock.Since(volume.CreationTimestamp.Time) < s.Grace:
		case guarded && !guard.ShouldDelete(ctx, volume):
		default:
			missing++
			log.FromContext(ctx).Info("A volume has no storage that the driver knows of; see docs/operations.md", "driver", name, "volume", volume.Name)
		}
	}
	s.Metrics.missing.WithLabelValues(name).Set(float64(missing))
	return nil
}

// discard reports whether the orphan is gone.
func (s *OrphanSweeper) discard(ctx context.Context, driver string, inventory provisioner.Inventory, record provisioner.Record) bool {
	logger := log.FromContext(ctx).WithValues("driver", driver, "volume", record.Volume, "claim", record.Claim.String(), "created", record.Created)
	err := inventory.Discard(ctx, record)
	switch {
	case errors.Is(err, provisioner.ErrNotEmpty):
		logger.Info("An orphaned volume holds data and is left as it is; see docs/operations.md")
		return false
	case err != nil:
		logger.Error(err, "Remove an orphaned volume")
		return false
	}
	s.Metrics.orphansRemoved.WithLabelValues(driver).Inc()
	logger.Info("Removed an orphaned volume that held no data")
	return true
}

// isOrphan asks the cache first, and the API server before it says yes.
func (s *OrphanSweeper) isOrphan(ctx context.Context, inventory provisioner.Inventory, record provisioner.Record) (bool, error) {
	if s.Clock.Since(record.Created) < s.Grace {
		return false, nil
	}
	for _, reader := range []client.Reader{s.Client, s.APIReader} {
		known, err := isKnown(ctx, reader, inventory, record)
		if known || err != nil {
			return false, err
		}
	}
	return true, nil
}

// isKnown reports whether the record's volume exists in its place, or its claim
// still waits for it.
func isKnown(ctx context.Context, reader client.Reader, inventory provisioner.Inventory, record provisioner.Record) (bool, error) {
	volume := &corev1.PersistentVolume{}
	err := reader.Get(ctx, types.NamespacedName{Name: record.Volume}, volume)
	if err == nil {
		return inventory.RecordOf(volume).Place == record.Place, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("read volume %s: %w", record.Volume, err)
	}
	claim := &corev1.PersistentVolumeClaim{}
	err = reader.Get(ctx, record.Claim, claim)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read claim %s: %w", record.Claim, err)
	}
	waits := claim.UID == record.ClaimUID && (claim.Spec.VolumeName == "" || claim.Spec.VolumeName == record.Volume)
	return waits, nil
}
