package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

const (
	// foreignClass and foreignProvisioner are no berth's.
	foreignClass       = "bench-foreign"
	foreignProvisioner = "bench.berth.storage/foreign"

	// writers is how many objects are made at a time that are not measured.
	writers = 64
)

// inParallel calls do with the numbers up to n; after an error, with no more.
func inParallel(ctx context.Context, n int, do func(i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var errs []error
	workqueue.ParallelizeUntil(ctx, writers, n, func(i int) {
		if err := do(i); err != nil {
			cancel()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}

// staticVolume is one that an administrator could have made. No claim of a berth
// fits it.
func staticVolume(name string) *corev1.PersistentVolume {
	volume := bareVolume(newClaim(name, foreignClass), foreignClass)
	volume.Name, volume.Annotations, volume.Labels = name, nil, nil
	volume.Spec.ClaimRef = nil
	volume.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	return volume
}

func claimRefOf(claim *corev1.PersistentVolumeClaim) *corev1.ObjectReference {
	return bareVolume(claim, "").Spec.ClaimRef
}

// makeVolume makes a volume in a phase.
func (s *scene) makeVolume(ctx context.Context, volume *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) error {
	volumes := s.cluster.client.CoreV1().PersistentVolumes()
	volume, err := volumes.Create(ctx, volume, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	volume.Status.Phase = phase
	_, err = volumes.UpdateStatus(ctx, volume, metav1.UpdateOptions{})
	return err
}

// makePairs makes n claims and volumes that are Bound to each other, in the other
// namespace. Nobody may write to them meanwhile.
func (s *scene) makePairs(ctx context.Context, prefix string, n int) error {
	claims := s.cluster.client.CoreV1().PersistentVolumeClaims(s.otherNamespace())
	return inParallel(ctx, n, func(i int) error {
		claim := newClaim(fmt.Sprintf("%s-%05d", prefix, i), foreignClass)
		claim.Spec.VolumeName = s.plan.id + "-" + claim.Name
		claim.Annotations = map[string]string{
			volumehelpers.AnnBindCompleted:     "yes",
			volumehelpers.AnnBoundByController: "yes",
		}
		claim, err := claims.Create(ctx, claim, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		volume := bareVolume(claim, foreignClass)
		volume.Name, volume.Labels = claim.Spec.VolumeName, nil
		volume.Annotations[volumehelpers.AnnDynamicallyProvisioned] = foreignProvisioner
		if err := s.makeVolume(ctx, volume, corev1.VolumeBound); err != nil {
			return err
		}
		claim.Status = corev1.PersistentVolumeClaimStatus{
			Phase: corev1.ClaimBound, AccessModes: claim.Spec.AccessModes, Capacity: capacityOf(claim),
		}
		_, err = claims.UpdateStatus(ctx, claim, metav1.UpdateOptions{})
		return err
	})
}
