package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/test/cluster"
	"github.com/berth-storage/berth/test/cluster/images"
)

const (
	className       = "bench"
	namespacePrefix = "bench-pods-"
	// atOnce is how many requests this program sends at a time.
	atOnce       = 16
	roundTimeout = 5 * time.Minute
)

// bench is what rounds have in common.
type bench struct {
	client  kubernetes.Interface
	journal *journal
}

func newBench(ctx context.Context, c *cluster.Cluster) (*bench, error) {
	b := &bench{client: c.Client(), journal: newJournal()}
	if err := b.journal.follow(ctx, b.client); err != nil {
		return nil, err
	}
	_, err := b.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: className},
		Provisioner:       hostpath.Name,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	return b, err
}

// round is pods that are made at once, and deleted once all run.
type round struct {
	name   string
	pods   int
	claims bool // one for each pod
}

func (r round) namespace() string { return namespacePrefix + r.name }

// round makes the pods, waits until they run, deletes them, and waits until
// everything is gone.
func (b *bench) round(ctx context.Context, r round) (roundResult, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, roundTimeout, fmt.Errorf("not within %s", roundTimeout))
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.namespace()}}
	if _, err := b.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return roundResult{}, err
	}
	if err := b.awaitAccount(ctx, r); err != nil {
		return roundResult{}, err
	}
	fmt.Fprintf(os.Stderr, "%s: %d pods\n", r.name, r.pods)
	began := time.Now()
	if err := b.create(ctx, r); err != nil {
		return roundResult{}, err
	}
	if err := b.awaitAll(ctx, r, "pods to run", b.journal.running, r.pods); err != nil {
		return roundResult{}, err
	}
	deleted := time.Now()
	if err := b.delete(ctx, r); err != nil {
		return roundResult{}, err
	}
	if err := b.awaitAll(ctx, r, "pods to go", b.journal.podGone, r.pods); err != nil {
		return roundResult{}, err
	}
	if r.claims {
		if err := b.awaitAll(ctx, r, "claims to go", b.journal.claimGone, r.pods); err != nil {
			return roundResult{}, err
		}
	}
	if err := b.journal.await(ctx, "volumes to go", func() bool { return len(b.journal.volumes) == 0 }); err != nil {
		return roundResult{}, err
	}
	return b.result(r, began, deleted, time.Now()), nil
}

// awaitAccount waits for what every pod of a new namespace needs.
func (b *bench) awaitAccount(ctx context.Context, r round) error {
	for {
		_, err := b.client.CoreV1().ServiceAccounts(r.namespace()).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (b *bench) awaitAll(ctx context.Context, r round, what string, t times, want int) error {
	return b.journal.await(ctx, what, func() bool { return len(t[r.namespace()]) >= want })
}

// create makes the claims and then the pods: kube-scheduler complains about a pod
// whose claim it has not seen.
func (b *bench) create(ctx context.Context, r round) error {
	if r.claims {
		claims := b.client.CoreV1().PersistentVolumeClaims(r.namespace())
		if err := r.each(ctx, func(ctx context.Context, name string) error {
			_, err := claims.Create(ctx, newClaim(name), metav1.CreateOptions{})
			return err
		}); err != nil {
			return err
		}
	}
	return r.each(ctx, func(ctx context.Context, name string) error {
		_, err := b.client.CoreV1().Pods(r.namespace()).Create(ctx, newPod(name, r.claims), metav1.CreateOptions{})
		return err
	})
}

// each calls f for the name of each pod, atOnce at a time.
func (r round) each(ctx context.Context, f func(ctx context.Context, name string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for n := range r.pods {
		group.Go(func() error { return f(ctx, fmt.Sprintf("pod-%02d", n)) })
	}
	return group.Wait()
}

// delete asks for the end of all pods, and of their claims, as the deletion of
// a namespace does.
func (b *bench) delete(ctx context.Context, r round) error {
	err := b.client.CoreV1().Pods(r.namespace()).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		return err
	}
	return b.client.CoreV1().PersistentVolumeClaims(r.namespace()).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

func (b *bench) result(r round, began, deleted, gone time.Time) roundResult {
	b.journal.mu.Lock()
	defer b.journal.mu.Unlock()
	result := roundResult{
		Name:     r.name,
		Claims:   r.claims,
		Running:  seconds(latest(b.journal.running[r.namespace()]).Sub(began)),
		PodsGone: seconds(latest(b.journal.podGone[r.namespace()]).Sub(deleted)),
		AllGone:  seconds(gone.Sub(deleted)),
	}
	selected := b.journal.selected[r.namespace()]
	var waits []time.Duration
	for claim, bound := range b.journal.bound[r.namespace()] {
		waits = append(waits, bound.Sub(selected[claim]))
	}
	slices.Sort(waits)
	result.BoundP50, result.BoundMax = seconds(percentile(waits, 50)), seconds(percentile(waits, 100))
	for _, text := range b.journal.warnings {
		if strings.HasPrefix(text, r.namespace()+"/") {
			result.Warnings = append(result.Warnings, text)
		}
	}
	slices.Sort(result.Warnings)
	return result
}

func latest(times map[string]time.Time) time.Time {
	return slices.MaxFunc(slices.Collect(maps.Values(times)), time.Time.Compare)
}

func newClaim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(className),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
		},
	}
}

func newPod(name string, claim bool) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers: []corev1.Container{{
				Name:    "main",
				Image:   images.Busybox,
				Command: []string{"sleep", "3600"},
			}},
		},
	}
	if claim {
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}}}
	}
	return pod
}
