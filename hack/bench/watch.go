package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	watchtools "k8s.io/client-go/tools/watch"
)

// watchFunc makes a watch restartable.
type watchFunc func(context.Context, metav1.ListOptions) (watch.Interface, error)

func (f watchFunc) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return f(ctx, o)
}

// follow calls handle for everything that changes after resourceVersion, until ctx
// ends. failed is called when the watch can't go on.
func follow(ctx context.Context, resourceVersion string, f watchFunc, handle func(watch.Event), failed func(error)) error {
	w, err := watchtools.NewRetryWatcherWithContext(ctx, resourceVersion, f)
	if err != nil {
		return err
	}
	go func() {
		defer w.Stop()
		for event := range w.ResultChan() {
			if event.Type == watch.Error {
				failed(fmt.Errorf("watch: %w", apierrors.FromObject(event.Object)))
				return
			}
			handle(event)
		}
	}()
	return nil
}

// boundWatch notes when each claim of a namespace is first seen Bound, and what
// becomes of it.
type boundWatch struct {
	mu     sync.Mutex
	times  map[string]time.Time
	phases map[string]corev1.PersistentVolumeClaimPhase // last seen
	lost   map[string]int                               // how often a claim became Lost
	moved  chan struct{}                                // has an entry when something was noted since it was last read
}

func newBoundWatch() *boundWatch {
	return &boundWatch{
		times:  map[string]time.Time{},
		phases: map[string]corev1.PersistentVolumeClaimPhase{},
		lost:   map[string]int{},
		moved:  make(chan struct{}, 1),
	}
}

func watchBound(ctx context.Context, client kubernetes.Interface, namespace string, failed func(error)) (*boundWatch, error) {
	api := client.CoreV1().PersistentVolumeClaims(namespace)
	list, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	b := newBoundWatch()
	return b, follow(ctx, list.ResourceVersion, api.Watch, b.handle, failed)
}

func (b *boundWatch) handle(event watch.Event) {
	now := time.Now()
	claim, ok := event.Object.(*corev1.PersistentVolumeClaim)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	phase := claim.Status.Phase
	if phase == corev1.ClaimLost && b.phases[claim.Name] != phase {
		b.lost[claim.Name]++
	}
	b.phases[claim.Name] = phase
	if _, seen := b.times[claim.Name]; seen || phase != corev1.ClaimBound {
		return
	}
	b.times[claim.Name] = now
	select {
	case b.moved <- struct{}{}:
	default:
	}
}

// at returns when the claim of this name was first seen Bound.
func (b *boundWatch) at(name string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.times[name]
}

// claimSeen is what a boundWatch knows of a claim.
type claimSeen struct {
	bound time.Time // the first time; zero for never
	phase corev1.PersistentVolumeClaimPhase
	lost  int // how often it became Lost
}

func (b *boundWatch) of(name string) claimSeen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return claimSeen{bound: b.times[name], phase: b.phases[name], lost: b.lost[name]}
}

func (b *boundWatch) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.times)
}

// await returns when n claims have been Bound.
func (b *boundWatch) await(ctx context.Context, n int) error {
	for b.count() < n {
		select {
		case <-b.moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// eventCounts are the Event writes seen in a namespace, whoever made them.
type eventCounts struct {
	mu        sync.Mutex
	total     int
	byReason  map[string]int
	lost      int
	conflicts int
}

func watchEvents(ctx context.Context, client kubernetes.Interface, namespace string, failed func(error)) (*eventCounts, error) {
	api := client.CoreV1().Events(namespace)
	list, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	c := &eventCounts{byReason: map[string]int{}}
	return c, follow(ctx, list.ResourceVersion, api.Watch, c.handle, failed)
}

// handle counts a write: a new Event, or a repetition noted in an old one.
func (c *eventCounts) handle(w watch.Event) {
	event, ok := w.Object.(*corev1.Event)
	if !ok || w.Type != watch.Added && w.Type != watch.Modified {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	c.byReason[event.Reason]++
	switch {
	case event.Reason == "ClaimLost":
		c.lost++
	case event.Reason == "ProvisioningFailed" && strings.Contains(event.Message, "the object has been modified"):
		c.conflicts++
	}
}

// snapshot returns the counts so far.
func (c *eventCounts) snapshot() *eventCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	byReason := map[string]int{}
	for reason, n := range c.byReason {
		byReason[reason] = n
	}
	return &eventCounts{total: c.total, byReason: byReason, lost: c.lost, conflicts: c.conflicts}
}
