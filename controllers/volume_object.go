package controllers

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/crashpoint"
)

// deleteVolumeObject deletes volume, whose storage is gone, then lets it go.
func deleteVolumeObject(ctx context.Context, c client.Client, volume *corev1.PersistentVolume) error {
	if volume.DeletionTimestamp == nil {
		if err := c.Delete(ctx, volume.DeepCopy(), client.Preconditions{UID: &volume.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete volume: %w", err)
		}
		crashpoint.Reach(crashpoint.VolumeDeleted)
	}
	return setFinalizer(ctx, c, volume, false)
}

// setFinalizer adds or removes our finalizer. Only that entry is touched, and
// only on this very volume.
func setFinalizer(ctx context.Context, c client.Client, volume *corev1.PersistentVolume, present bool) error {
	const finalizer = volumehelpers.PVDeletionProtectionFinalizer
	if isProtected(volume) == present {
		return nil
	}
	field := "$deleteFromPrimitiveList/finalizers"
	if present {
		field = "finalizers"
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": volume.UID, field: []string{finalizer}}})
	if err != nil {
		return fmt.Errorf("encode finalizer patch: %w", err)
	}
	err = c.Patch(ctx, volume.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("change finalizer: %w", err)
	}
	crashpoint.Reach(crashpoint.FinalizerRemoved)
	return nil
}
