package controllers

import (
	"strings"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// minRetry and maxRetry bound the backoff of a failing claim or volume, which
// never ends.
const (
	minRetry = time.Second
	maxRetry = 5 * time.Minute
)

// controllerOptions are those all reconcilers of this package share. kind is
// the key under which log lines carry the object's name.
func controllerOptions(mgr ctrl.Manager, kind string, workers int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: workers,
		RateLimiter:             newBackoff(),
		LogConstructor: func(request *reconcile.Request) logr.Logger {
			if request == nil {
				return mgr.GetLogger()
			}
			return mgr.GetLogger().WithValues(kind, strings.TrimPrefix(request.String(), "/"))
		},
	}
}

func newBackoff() workqueue.TypedRateLimiter[reconcile.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minRetry, maxRetry)
}
