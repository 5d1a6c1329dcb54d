package cli

import (
	"context"
	"fmt"

	eventsclient "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Events go through a client of their own, slower than the one that does the
// work, so that a burst of claims is bound before it is told about.
const (
	eventsPerSecond = 50
	eventsBurst     = 100
)

func newEventRecorder(mgr manager.Manager) (events.EventRecorder, error) {
	c := rest.CopyConfig(mgr.GetConfig())
	c.QPS, c.Burst = eventsPerSecond, eventsBurst
	client, err := eventsclient.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("create client for events: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client})
	err = mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			return fmt.Errorf("start recording events: %w", err)
		}
		<-ctx.Done()
		broadcaster.Shutdown()
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("add event recorder: %w", err)
	}
	return broadcaster.NewRecorder(mgr.GetScheme(), "berth"), nil
}
