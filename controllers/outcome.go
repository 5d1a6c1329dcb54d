package controllers

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-storage/berth/provisioner"
)

// outcome says what came of an attempt on storage, for the one line that the log
// has about it. Its keys are the same for all that Berth does. What the line has
// from its reconciler (controllerOptions) is left empty, as is what does not apply.
type outcome struct {
	claim, volume, class, driver, node string
	began                              time.Time
}

// claimOutcome is for the reconcilers whose requests are claims.
func claimOutcome(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, began time.Time) outcome {
	return outcome{
		volume: volumeNameFor(claim), class: class.Name, driver: class.Provisioner, node: selectedNode(claim), began: began,
	}
}

// volumeOutcome is for the reconcilers whose requests are volumes.
func volumeOutcome(drivers *provisioner.Registry, volume *corev1.PersistentVolume, began time.Time) outcome {
	o := outcome{
		class: volume.Spec.StorageClassName, driver: volume.Annotations[volumehelpers.AnnDynamicallyProvisioned],
		node: nodeOf(drivers, volume), began: began,
	}
	if ref := volume.Spec.ClaimRef; ref != nil {
		o.claim = types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}.String()
	}
	return o
}

// keys are those of the line, as logr wants them.
func (o outcome) keys(now time.Time) []any {
	var keys []any
	for _, pair := range [][2]string{{"claim", o.claim}, {"volume", o.volume}, {"class", o.class}, {"driver", o.driver}, {"node", o.node}} {
		if pair[1] != "" {
			keys = append(keys, pair[0], pair[1])
		}
	}
	if !o.began.IsZero() {
		keys = append(keys, "duration", now.Sub(o.began).String())
	}
	return keys
}

// storageError is what a driver failed with. Whom it concerns was told so by an
// event; it is part of the work, and is tried again.
type storageError struct {
	// what failed, as the beginning of a sentence.
	what string
	keys []any
	err  error
}

func (e *storageError) Error() string { return e.what + ": " + e.err.Error() }
func (e *storageError) Unwrap() error { return e.err }

// patient is a reconciler whose storage errors are logged in a line like that of
// a success, and tried again after a time that grows. What else fails, requests to
// the API server mostly, is left to controller-runtime.
type patient struct {
	reconcile.Reconciler
	backoff workqueue.TypedRateLimiter[reconcile.Request]
}

func newPatient(r reconcile.Reconciler) *patient {
	return &patient{Reconciler: r, backoff: newBackoff()}
}

// Reconcile implements reconcile.Reconciler.
func (p *patient) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := p.Reconciler.Reconcile(ctx, req)
	var failed *storageError
	if !errors.As(err, &failed) {
		if err == nil {
			p.backoff.Forget(req)
		}
		return result, err
	}
	wait := p.backoff.When(req)
	log.FromContext(ctx).Error(failed.err, failed.what, append(failed.keys, "retryAfter", wait.String())...)
	return reconcile.Result{RequeueAfter: wait}, nil
}
