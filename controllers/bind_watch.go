package controllers

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// lagWatcher shows a volumeLag all volumes and claims, anybody's, as the cache
// sees them. It runs on standby replicas too, so that a new leader knows.
type lagWatcher struct {
	client client.Client
	cache  cache.Cache
	lag    *volumeLag
	// concerns passes the volumes of our drivers.
	concerns func(client.Object) bool
}

// NeedLeaderElection is false: it writes nothing.
func (w *lagWatcher) NeedLeaderElection() bool { return false }

// Start watches until ctx ends.
func (w *lagWatcher) Start(ctx context.Context) error {
	// Both are in the cache before the first handler is called, so that no
	// claim seems to be gone that is not read yet.
	volumes, err := w.cache.GetInformer(ctx, &corev1.PersistentVolume{})
	if err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	claims, err := w.cache.GetInformer(ctx, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return fmt.Errorf("watch claims: %w", err)
	}
	w.lag.claimOf = func(volume *corev1.PersistentVolume) *corev1.PersistentVolumeClaim { return w.claimOf(ctx, volume) }
	w.lag.volumesOf = func(claim types.NamespacedName) []*corev1.PersistentVolume { return w.volumesOf(ctx, claim) }
	w.lag.serves = func(volume *corev1.PersistentVolume) bool { return w.concerns(volume) }
	volumesShown, err := volumes.AddEventHandler(w.volumeHandler())
	if err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	claimsShown, err := claims.AddEventHandler(w.claimHandler())
	if err != nil {
		return fmt.Errorf("watch claims: %w", err)
	}
	if toolscache.WaitForCacheSync(ctx.Done(), volumesShown.HasSynced, claimsShown.HasSynced) {
		w.lag.Ready()
	}
	<-ctx.Done()
	return nil
}

func (w *lagWatcher) volumeHandler() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(o any, known bool) {
			if volume, ok := o.(*corev1.PersistentVolume); ok {
				w.lag.VolumeAdded(volume, known)
			}
		},
		UpdateFunc: func(o, n any) {
			before, ok := o.(*corev1.PersistentVolume)
			after, ok2 := n.(*corev1.PersistentVolume)
			if ok && ok2 {
				w.lag.VolumeChanged(before, after)
			}
		},
		DeleteFunc: func(o any) {
			if key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
				w.lag.VolumeGone(key)
			}
		},
	}
}

func (w *lagWatcher) claimHandler() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(o any, _ bool) {
			if claim, ok := o.(*corev1.PersistentVolumeClaim); ok {
				w.lag.ClaimMoved(client.ObjectKeyFromObject(claim))
			}
		},
		UpdateFunc: func(o, n any) {
			before, ok := o.(*corev1.PersistentVolumeClaim)
			after, ok2 := n.(*corev1.PersistentVolumeClaim)
			if !ok || !ok2 {
				return
			}
			if lives, requests := byCluster(before, after); lives {
				w.lag.ClusterLives(requests)
			}
			if before.UID != after.UID || before.Spec.VolumeName != after.Spec.VolumeName {
				w.lag.ClaimMoved(client.ObjectKeyFromObject(after))
			}
		},
		DeleteFunc: func(o any) {
			key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(o)
			if err != nil {
				return
			}
			w.lag.ClusterLives(0) // it has taken its finalizer off
			if namespace, name, err := toolscache.SplitMetaNamespaceKey(key); err == nil {
				w.lag.ClaimMoved(types.NamespacedName{Namespace: namespace, Name: name})
			}
		},
	}
}

// byCluster reports whether it was kube-controller-manager that made after of
// before: that it asks for a volume, has lost one, or looks whether pods use a bound
// claim (pkg/controller/volume/pvcprotection, from Kubernetes 1.37 on) is written by
// nobody else. It returns how many requests of its PersistentVolume controller's
// client that took; the other one has a client of its own.
func byCluster(before, after *corev1.PersistentVolumeClaim) (lives bool, requests int) {
	if before.UID != after.UID {
		return false, 0 // nobody knows when it was written
	}
	triggered := after.Spec.VolumeName == "" && !isTriggered(before) && isTriggered(after)
	lost := before.Status.Phase != corev1.ClaimLost && after.Status.Phase == corev1.ClaimLost
	if triggered || lost {
		return true, 1
	}
	return isCalledUnused(after) && !isCalledUnused(before), 0
}

// isCalledUnused reports whether claim says of itself whether pods use it.
func isCalledUnused(claim *corev1.PersistentVolumeClaim) bool {
	return slices.ContainsFunc(claim.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimUnused
	})
}

// volumesOf returns the cached volumes that refer to a claim by name.
func (w *lagWatcher) volumesOf(ctx context.Context, claim types.NamespacedName) []*corev1.PersistentVolume {
	volumes, err := volumesReferringTo(ctx, w.client, claim)
	if err != nil {
		log.FromContext(ctx).Error(err, "List the volumes of a claim", "claim", claim)
	}
	return volumes
}

// claimOf returns the cached claim that volume refers to by name, nil when there
// is none. It must not be changed.
func (w *lagWatcher) claimOf(ctx context.Context, volume *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	ref := volume.Spec.ClaimRef
	if ref == nil {
		return nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := w.client.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, claim, client.UnsafeDisableDeepCopy)
	if err == nil {
		return claim
	}
	if !apierrors.IsNotFound(err) {
		log.FromContext(ctx).Error(err, "Read a volume's claim", "volume", volume.Name)
	}
	return nil
}
