package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-storage/berth/provisioner"
)

// namesFresh is for how long a sweep believes what volumes name.
const namesFresh = 5 * time.Second

// OrphanSweeper looks, time and again, for storage that no PersistentVolume and
// no pending claim knows: what a crash between making the storage and writing
// the volume leaves when the claim is deleted meanwhile, and volumes whose
// PersistentVolume an administrator deleted. It also looks for volumes whose
// storage nobody has a record of, and has volumes that don't say which pool they
// lie in say so. It removes only what can't hold data (provisioner.Inventory,
// Discard), and nothing that any PersistentVolume names; the rest is counted and
// named in the log.
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

// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch

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

// survey is what one look through what a driver keeps has found.
type survey struct {
	// began is when the driver was asked.
	began time.Time
	// found holds the volumes whose storage is where they say, and the pool it is in.
	found map[string]string
	// unnamed are those of them that don't say which pool they lie in, as far as one
	// sweep can do something about it.
	unnamed []misplaced
	// elsewhere is the storage of volumes that say they are somewhere else.
	elsewhere []misplaced
	// orphans is what neither a volume nor a claim in the cache knows.
	orphans []provisioner.Record
	// unread are the beginnings of the places that could not be read.
	unread []string
	// failed says why.
	failed []error
}

// misplaced is storage and the volume of its name.
type misplaced struct {
	record provisioner.Record
	volume *corev1.PersistentVolume
}

// sweep looks through what one driver keeps.
func (s *OrphanSweeper) sweep(ctx context.Context, name string) error {
	driver, _ := s.Drivers.Get(name)
	inventory, ok := provisioner.As[provisioner.Inventory](driver)
	if !ok {
		return nil
	}
	_, identifies := provisioner.As[provisioner.PoolKeeper](driver)
	seen := s.look(ctx, inventory, identifies)
	left, err := s.discardAll(ctx, name, inventory, seen.orphans)
	seen.failed = append(seen.failed, err)
	s.Metrics.orphans.WithLabelValues(name).Set(float64(left))
	seen.failed = append(seen.failed, s.identify(ctx, driver, seen))
	s.reportStrays(ctx, name, inventory, seen)
	seen.failed = append(seen.failed, s.countMissing(ctx, name, inventory, seen))
	return errors.Join(seen.failed...)
}

// look sorts what the driver keeps by what the cache knows of it. What can't be read
// of it keeps no other from being looked at.
func (s *OrphanSweeper) look(ctx context.Context, inventory provisioner.Inventory, identifies bool) *survey {
	seen := &survey{began: s.Clock.Now(), found: map[string]string{}}
	for record, err := range inventory.Volumes(ctx) {
		if err != nil {
			seen.failed = append(seen.failed, fmt.Errorf("list volumes: %w", err))
			seen.unread = append(seen.unread, unreadPlace(err))
			continue
		}
		volume, err := volumeNamed(ctx, s.Client, record.Volume)
		if err != nil {
			seen.failed = append(seen.failed, err)
			continue
		}
		if volume == nil {
			seen.failed = append(seen.failed, s.lookForClaim(ctx, seen, record))
			continue
		}
		said := inventory.RecordOf(volume)
		switch found := (misplaced{record, volume}); compareStorage(record, said) {
		case storageHere:
			seen.found[volume.Name] = record.Pool
			if identifies && said.Pool == "" && record.Pool != "" && len(seen.unnamed) < identifiedPerSweep {
				seen.unnamed = append(seen.unnamed, found)
			}
		default:
			seen.elsewhere = append(seen.elsewhere, found)
		}
	}
	return seen
}

// lookForClaim adds a record without a volume to the orphans, if it is old enough
// and no claim waits for it.
func (s *OrphanSweeper) lookForClaim(ctx context.Context, seen *survey, record provisioner.Record) error {
	if s.Clock.Since(record.Created) < s.Grace {
		return nil
	}
	awaited, err := isAwaited(ctx, s.Client, record)
	if !awaited && err == nil {
		seen.orphans = append(seen.orphans, record)
	}
	return err
}

// discardAll removes the orphans that hold nothing, and returns how many are left.
// Before each it asks the API server whether anybody knows of it.
func (s *OrphanSweeper) discardAll(ctx context.Context, name string, inventory provisioner.Inventory, orphans []provisioner.Record) (left int, _ error) {
	var failed []error
	named := &namedPaths{reader: s.APIReader, clock: s.Clock, fresh: namesFresh}
	for _, record := range orphans {
		known, err := s.isKnown(ctx, named, record)
		switch {
		case err != nil:
			failed = append(failed, err)
			left++
		case known == "":
			if !s.discard(ctx, name, inventory, record) {
				left++
			}
		case known != record.Volume:
			log.FromContext(ctx).Info("Storage of a volume that is gone is left, since another volume names it", "driver", name,
				"volume", record.Volume, "claim", record.Claim.String(), "place", record.Place, "namedBy", known)
			left++
		}
	}
	return left, errors.Join(failed...)
}

// isKnown returns the name of a volume that names the record's storage, or that is
// still to be made for it, as the API server has them; "" when there is none.
func (s *OrphanSweeper) isKnown(ctx context.Context, named *namedPaths, record provisioner.Record) (string, error) {
	by, err := named.by(ctx, record.Path, "")
	if by != "" || err != nil {
		return by, err
	}
	volume, err := volumeNamed(ctx, s.APIReader, record.Volume)
	if volume != nil || err != nil {
		return record.Volume, err
	}
	awaited, err := isAwaited(ctx, s.APIReader, record)
	if awaited || err != nil {
		return record.Volume, err
	}
	return "", nil
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

// reportStrays counts the storage of volumes that are somewhere else: what was made
// by an attempt that was given up, and copies.
func (s *OrphanSweeper) reportStrays(ctx context.Context, name string, inventory provisioner.Inventory, seen *survey) {
	strays := 0
	for _, stray := range seen.elsewhere {
		said := inventory.RecordOf(stray.volume)
		if compareStorage(stray.record, said) != storageStray {
			continue
		}
		if pool := seen.found[stray.volume.Name]; pool != "" && pool == stray.record.Pool {
			continue // the same, reached in another way
		}
		strays++
		log.FromContext(ctx).Info("Storage is left as it is, since a volume of its name is somewhere else; see docs/operations.md",
			"driver", name, "volume", stray.volume.Name, "place", stray.record.Place, "volumePlace", said.Place)
	}
	s.Metrics.strays.WithLabelValues(name).Set(float64(strays))
}

// volumeNamed returns the volume of that name, nil when there is none.
func volumeNamed(ctx context.Context, reader client.Reader, name string) (*corev1.PersistentVolume, error) {
	volume := &corev1.PersistentVolume{}
	if err := reader.Get(ctx, types.NamespacedName{Name: name}, volume); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	return volume, nil
}

// isAwaited reports whether the record's claim still waits for its volume.
func isAwaited(ctx context.Context, reader client.Reader, record provisioner.Record) (bool, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := reader.Get(ctx, record.Claim, claim); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return false, nil
		}
		return false, fmt.Errorf("read claim %s: %w", record.Claim, err)
	}
	return claim.UID == record.ClaimUID && (claim.Spec.VolumeName == "" || claim.Spec.VolumeName == record.Volume), nil
}

// unreadPlace returns how the places begin that err hides; "" for all of them.
func unreadPlace(err error) string {
	var unread *provisioner.UnreadError
	if errors.As(err, &unread) {
		return unread.Place
	}
	return ""
}

// isUnread reports whether a place may be one that could not be read.
func (s *survey) isUnread(place string) bool {
	for _, begin := range s.unread {
		if strings.HasPrefix(place, begin) {
			return true
		}
	}
	return false
}
