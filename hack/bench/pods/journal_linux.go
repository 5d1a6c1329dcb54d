package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	watchtools "k8s.io/client-go/tools/watch"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

// journal notes when what happened, as one watch of each kind shows it.
type journal struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	err     error

	selected, bound, claimGone times             // of claims
	running, podGone           times             // of pods
	volumes                    map[string]bool   // those that exist
	warnings                   map[string]string // by event
	pods                       map[string]bool   // every pod ever seen
}

// times are those of objects, by namespace and name.
type times map[string]map[string]time.Time

// first notes the time when something was true of an object for the first time.
func (t times) first(o metav1.Object, at time.Time, is bool) {
	if !is {
		return
	}
	objects := t[o.GetNamespace()]
	if objects == nil {
		objects = map[string]time.Time{}
		t[o.GetNamespace()] = objects
	}
	if _, known := objects[o.GetName()]; !known {
		objects[o.GetName()] = at
	}
}

func newJournal() *journal {
	return &journal{
		changed:   make(chan struct{}),
		selected:  times{},
		bound:     times{},
		claimGone: times{},
		running:   times{},
		podGone:   times{},
		volumes:   map[string]bool{},
		warnings:  map[string]string{},
		pods:      map[string]bool{},
	}
}

// source is a kind of objects to follow.
type source struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// WatchWithContext implements cache.WatcherWithContext.
func (s source) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return s.watch(ctx, o)
}

// follow notes what is there, and starts the watches.
func (j *journal) follow(ctx context.Context, client kubernetes.Interface) error {
	core := client.CoreV1()
	pods, claims, volumes, events := core.Pods(""), core.PersistentVolumeClaims(""), core.PersistentVolumes(), core.Events("")
	for kind, s := range map[string]source{
		"pods":    {func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) }, pods.Watch},
		"claims":  {func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return claims.List(ctx, o) }, claims.Watch},
		"volumes": {func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return volumes.List(ctx, o) }, volumes.Watch},
		"events":  {func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return events.List(ctx, o) }, events.Watch},
	} {
		if err := j.followOne(ctx, kind, s); err != nil {
			return fmt.Errorf("follow %s: %w", kind, err)
		}
	}
	return nil
}

func (j *journal) followOne(ctx context.Context, kind string, s source) error {
	list, err := s.list(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if err := meta.EachListItem(list, func(o runtime.Object) error {
		j.note(false, o, time.Now())
		return nil
	}); err != nil {
		return err
	}
	version, err := meta.NewAccessor().ResourceVersion(list)
	if err != nil {
		return err
	}
	w, err := watchtools.NewRetryWatcherWithContext(ctx, version, s)
	if err != nil {
		return err
	}
	go j.read(ctx, kind, w)
	return nil
}

func (j *journal) read(ctx context.Context, kind string, w watch.Interface) {
	defer w.Stop()
	for event := range w.ResultChan() {
		j.note(event.Type == watch.Deleted, event.Object, time.Now())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if ctx.Err() == nil && j.err == nil {
		j.err = fmt.Errorf("the watch of %s ended", kind)
		j.wakeLocked()
	}
}

func (j *journal) note(gone bool, object runtime.Object, at time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch o := object.(type) {
	case *corev1.Pod:
		j.pods[key(o)] = true
		j.running.first(o, at, o.Status.Phase == corev1.PodRunning)
		j.podGone.first(o, at, gone)
	case *corev1.PersistentVolumeClaim:
		j.selected.first(o, at, o.Annotations[volumehelpers.AnnSelectedNode] != "")
		j.bound.first(o, at, o.Status.Phase == corev1.ClaimBound)
		j.claimGone.first(o, at, gone)
	case *corev1.PersistentVolume:
		j.volumes[o.Name] = true
		if gone {
			delete(j.volumes, o.Name)
		}
	case *corev1.Event:
		if o.Type == corev1.EventTypeWarning {
			about := o.InvolvedObject
			j.warnings[key(o)] = fmt.Sprintf("%s/%s: %s: %s", about.Namespace, about.Name, o.Reason, o.Message)
		}
	}
	j.wakeLocked()
}

func (j *journal) wakeLocked() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// await returns when done says so. It is called with the journal locked.
func (j *journal) await(ctx context.Context, what string, done func() bool) error {
	for {
		j.mu.Lock()
		ready, changed, err := done(), j.changed, j.err
		j.mu.Unlock()
		switch {
		case err != nil:
			return err
		case ready:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-changed:
		}
	}
}

// strangers returns the pods that neither this program nor the installation of
// Berth has made.
func (j *journal) strangers() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(j.pods)), func(pod string) bool {
		return strings.HasPrefix(pod, namespacePrefix) || strings.HasPrefix(pod, "berth-system/berth-controller-") ||
			strings.HasPrefix(pod, "berth-system/berth-agent-")
	})
}
