package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	eventsclient "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// component is who writes Berth's events.
const component = "berth"

// Good news goes through a slow client of its own, so that a burst of claims is
// bound before it is told about. Warnings don't wait.
const (
	newsPerSecond = 20
	newsBurst     = 20
)

// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// NewEventRecorder returns the recorder for the reconcilers of this package. Its
// events are written while mgr runs.
//
// Warnings are written with the core API's recorder, which takes two messages for
// two events; that of the events API counts a second message as a repetition
// of the first, and never shows it.
func NewEventRecorder(mgr manager.Manager) (events.EventRecorder, error) {
	slow := rest.CopyConfig(mgr.GetConfig())
	slow.QPS, slow.Burst = newsPerSecond, newsBurst
	newsClient, err := eventsclient.NewForConfig(slow)
	if err != nil {
		return nil, fmt.Errorf("create client for events: %w", err)
	}
	warningsClient, err := corev1client.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("create client for warnings: %w", err)
	}
	news := events.NewBroadcaster(&events.EventSinkImpl{Interface: newsClient})
	warnings := record.NewBroadcaster()
	err = mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		if err := news.StartRecordingToSinkWithContext(ctx); err != nil {
			return fmt.Errorf("start recording events: %w", err)
		}
		warnings.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: warningsClient.Events("")})
		<-ctx.Done()
		news.Shutdown()
		warnings.Shutdown()
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("add event recorder: %w", err)
	}
	return &eventRecorder{
		news:     news.NewRecorder(mgr.GetScheme(), component),
		warnings: warnings.NewRecorder(mgr.GetScheme(), corev1.EventSource{Component: component}),
	}, nil
}

type eventRecorder struct {
	news     events.EventRecorder
	warnings record.EventRecorder
}

// Eventf implements events.EventRecorder.
func (r *eventRecorder) Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any) {
	if eventType == corev1.EventTypeWarning {
		r.warnings.Eventf(regarding, eventType, reason, note, args...)
		return
	}
	r.news.Eventf(regarding, related, eventType, reason, action, note, args...)
}
