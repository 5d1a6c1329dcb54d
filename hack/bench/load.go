package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

const (
	// creators is how many claims are created at a time: enough for creation not
	// to be what is measured.
	creators = 32
	// singleInterval is the time between two claims that are made one by one.
	singleInterval = 500 * time.Millisecond
)

// pace is how claims are created: all at once, unless it says otherwise.
type pace struct {
	rate     float64 // per second
	oneByOne bool    // each when the one before is Bound
	prefix   string  // of the claims' names
}

// due returns how long after the start claim i is to be created.
func (p pace) due(i int) time.Duration {
	switch {
	case p.oneByOne:
		return time.Duration(i) * singleInterval
	case p.rate > 0:
		return time.Duration(float64(i) / p.rate * float64(time.Second))
	}
	return 0
}

// bindTimes is when claims were made and Bound. The claims of classes that wait
// for a consumer count as made when they get their node.
type bindTimes struct {
	start     time.Time // before the first was made
	created   time.Time // after the last was made
	lastBound time.Time
	latencies []time.Duration // sorted
}

// elapsed is the time from the first made to the last Bound.
func (t bindTimes) elapsed() time.Duration { return t.lastBound.Sub(t.start) }

// bindAll makes n claims and waits until all are Bound.
func (b *bench) bindAll(ctx context.Context, namespace, class string, n int, p pace) (bindTimes, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	bound, err := watchBound(ctx, b.cluster.client, namespace, cancel)
	if err != nil {
		return bindTimes{}, err
	}
	times := bindTimes{}
	made, err := b.makeClaims(ctx, namespace, class, n, p, bound, &times)
	times.created = time.Now()
	if err == nil {
		err = bound.await(ctx, n)
	}
	if err != nil {
		return bindTimes{}, fmt.Errorf("%d of %d claims made, %d lack being Bound: %w", len(made), n, n-bound.count(), err)
	}
	for name, at := range made {
		when := bound.at(name)
		// The watch may be faster than the answer to the request.
		times.latencies = append(times.latencies, max(0, when.Sub(at)))
		if when.After(times.lastBound) {
			times.lastBound = when
		}
	}
	slices.Sort(times.latencies)
	return times, nil
}

// makeClaims makes n claims at a pace, and returns when each was made. It notes
// when it began.
func (b *bench) makeClaims(ctx context.Context, namespace, class string, n int, p pace, bound *boundWatch, times *bindTimes) (map[string]time.Time, error) {
	api := b.cluster.client.CoreV1().PersistentVolumeClaims(namespace)
	create := func(ctx context.Context, name string) error {
		_, err := api.Create(ctx, newClaim(name, class), metav1.CreateOptions{})
		return err
	}
	do := create
	if b.config.waitForConsumer {
		if _, err := (pace{prefix: p.prefix}).each(ctx, n, bound, create); err != nil {
			return nil, fmt.Errorf("create claims: %w", err)
		}
		do = func(ctx context.Context, name string) error { return selectNode(ctx, api, name) }
	}
	times.start = time.Now()
	return p.each(ctx, n, bound, do)
}

// selectNode gives a claim its node, as kube-scheduler does.
func selectNode(ctx context.Context, api corev1client.PersistentVolumeClaimInterface, name string) error {
	claim, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, volumehelpers.AnnSelectedNode, nodeName)
	_, err = api.Update(ctx, claim, metav1.UpdateOptions{})
	return err
}

// each calls do with the names of n claims at this pace, and returns when each
// call returned.
func (p pace) each(ctx context.Context, n int, bound *boundWatch, do func(ctx context.Context, name string) error) (map[string]time.Time, error) {
	var (
		mu   sync.Mutex
		done = map[string]time.Time{}
		errs []error
		all  sync.WaitGroup
		next = make(chan int)
	)
	one := func(i int) error {
		name := fmt.Sprintf("%sclaim-%05d", p.prefix, i)
		err := do(ctx, name)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			return err
		}
		done[name] = time.Now()
		return nil
	}
	for range creators {
		all.Go(func() {
			for i := range next {
				if one(i) != nil {
					return
				}
			}
		})
	}
	err := p.feed(ctx, n, next, bound)
	close(next)
	all.Wait()
	return done, errors.Join(append(errs, err)...)
}

// feed hands out the numbers of the claims when they are due.
func (p pace) feed(ctx context.Context, n int, next chan<- int, bound *boundWatch) error {
	start := time.Now()
	for i := range n {
		if wait := p.due(i) - time.Since(start); wait > 0 {
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
		if p.oneByOne {
			if err := bound.await(ctx, i); err != nil {
				return err
			}
		}
		select {
		case next <- i:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func newClaim(name, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Mi"),
			}},
		},
	}
}
