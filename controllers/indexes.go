package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Names of the cache's indexes.
const (
	// indexUnboundClass finds unbound claims by the class they name; those that
	// name none are under "".
	indexUnboundClass = "berth.unboundClass"
	// indexAvailableClass finds Available volumes by class.
	indexAvailableClass = "berth.availableClass"
	// indexClaimRef finds volumes by the namespace/name of the claim they refer to.
	indexClaimRef = "berth.claimRef"
	// indexDirectory finds volumes by the directory they name, and by those above it.
	indexDirectory = "berth.directory"
)

// SetupIndexes adds the cache indexes that the reconcilers of this package
// read. It must be called once, before the manager starts.
func SetupIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	indexes := []struct {
		object  client.Object
		name    string
		extract client.IndexerFunc
	}{
		{&corev1.PersistentVolumeClaim{}, indexUnboundClass, unboundClassKeys},
		{&corev1.PersistentVolume{}, indexAvailableClass, availableClassKeys},
		{&corev1.PersistentVolume{}, indexClaimRef, claimRefKeys},
		{&corev1.PersistentVolume{}, indexDirectory, directoryKeys},
	}
	for _, index := range indexes {
		if err := indexer.IndexField(ctx, index.object, index.name, index.extract); err != nil {
			return fmt.Errorf("index %s: %w", index.name, err)
		}
	}
	return nil
}

func unboundClassKeys(o client.Object) []string {
	claim := o.(*corev1.PersistentVolumeClaim)
	if claimNeedsNoVolume(claim) != "" {
		return nil
	}
	if volumehelpers.PersistentVolumeClaimHasClass(claim) && volumehelpers.GetPersistentVolumeClaimClass(claim) == "" {
		return nil
	}
	return []string{volumehelpers.GetPersistentVolumeClaimClass(claim)}
}

func availableClassKeys(o client.Object) []string {
	volume := o.(*corev1.PersistentVolume)
	if volume.Status.Phase != corev1.VolumeAvailable {
		return nil
	}
	return []string{volumehelpers.GetPersistentVolumeClass(volume)}
}

func claimRefKeys(o client.Object) []string {
	ref := o.(*corev1.PersistentVolume).Spec.ClaimRef
	if ref == nil {
		return nil
	}
	return []string{types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}.String()}
}

// volumesReferringTo lists the cached volumes that refer to claim by name,
// whatever UID they carry. The volumes are the cache's own and must not be
// changed.
func volumesReferringTo(ctx context.Context, c client.Reader, claim types.NamespacedName) ([]*corev1.PersistentVolume, error) {
	return listVolumes(ctx, c, indexClaimRef, claim.String())
}

// volumeRequests returns a request for each cached volume that refers to claim
// and that concerns passes.
func volumeRequests(ctx context.Context, c client.Reader, claim types.NamespacedName, concerns func(client.Object) bool) []reconcile.Request {
	volumes, err := volumesReferringTo(ctx, c, claim)
	if err != nil {
		log.FromContext(ctx).Error(err, "List the volumes of a claim", "claim", claim)
		return nil
	}
	var requests []reconcile.Request
	for _, volume := range volumes {
		if concerns(volume) {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: volume.Name}})
		}
	}
	return requests
}

func listVolumes(ctx context.Context, c client.Reader, index, key string) ([]*corev1.PersistentVolume, error) {
	var list corev1.PersistentVolumeList
	if err := c.List(ctx, &list, client.MatchingFields{index: key}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list volumes by %s: %w", index, err)
	}
	volumes := make([]*corev1.PersistentVolume, len(list.Items))
	for i := range list.Items {
		volumes[i] = &list.Items[i]
	}
	return volumes, nil
}
