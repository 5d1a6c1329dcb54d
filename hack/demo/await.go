package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// patience is how long a promise has to come true. It takes a second at
	// most on an idle machine.
	patience = 90 * time.Second
	// pollInterval is how often one looks.
	pollInterval = 25 * time.Millisecond
)

// await looks until look returns nil. Its error says what was promised, and why
// it had not come true when the patience was over or ctx ended.
func (d *demo) await(ctx context.Context, promise string, look func(context.Context) error) error {
	limited, stop := context.WithTimeout(ctx, patience)
	defer stop()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := look(limited)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limited.Done():
			return fmt.Errorf("waited %s in vain until %s: %w\nBerth's log ends with:\n%s", patience, promise, err, d.berthLog())
		case <-ticker.C:
		}
	}
}

func (d *demo) berthLog() string {
	if d.controller == nil {
		return "(it was not started)"
	}
	return d.controller.logTail()
}

// phases is the way a claim has come.
type phases []corev1.PersistentVolumeClaimPhase

// add notes phase when it is a new one.
func (p *phases) add(phase corev1.PersistentVolumeClaimPhase) {
	if len(*p) == 0 || (*p)[len(*p)-1] != phase {
		*p = append(*p, phase)
	}
}

func (p phases) String() string {
	names := make([]string, len(p))
	for i, phase := range p {
		names[i] = string(phase)
	}
	return strings.Join(names, " -> ")
}

// bound is a claim with its volume.
type bound struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

// awaitBound waits until both sides of a bind are written, and tells the way
// the claim has come since the moment began.
func (d *demo) awaitBound(ctx context.Context, name string, began time.Time) (*bound, error) {
	seen := phases{corev1.ClaimPending} // as every claim is made; it may be too quick to see
	var b *bound
	err := d.await(ctx, "claim "+name+" is bound", func(ctx context.Context) error {
		claim, err := d.claim(ctx, name)
		if err != nil {
			return err
		}
		seen.add(claim.Status.Phase)
		if claim.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("it is %s", seen)
		}
		volume, err := d.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if volume.Status.Phase != corev1.VolumeBound {
			return fmt.Errorf("its volume is %s", volume.Status.Phase)
		}
		b = &bound{claim, volume}
		return nil
	})
	if err != nil {
		return nil, err
	}
	d.Kept("claim %s: %s, %.1f s after the command", name, seen, time.Since(began).Seconds())
	return b, nil
}

func (d *demo) claim(ctx context.Context, name string) (*corev1.PersistentVolumeClaim, error) {
	return d.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
}

// awaitEvent waits for an event about a claim with this reason and text.
func (d *demo) awaitEvent(ctx context.Context, claim, reason, text string) error {
	selector := "involvedObject.kind=PersistentVolumeClaim,involvedObject.name=" + claim + ",reason=" + reason
	return d.await(ctx, fmt.Sprintf("claim %s has an event %s with %q", claim, reason, text), func(ctx context.Context) error {
		list, err := d.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return err
		}
		for _, event := range list.Items {
			if strings.Contains(event.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("%d events %s, none with the text", len(list.Items), reason)
	})
}

// awaitVolumePhase waits until a volume is in phase; "" until it is gone.
func (d *demo) awaitVolumePhase(ctx context.Context, name string, phase corev1.PersistentVolumePhase) error {
	want := string(phase)
	if want == "" {
		want = "gone"
	}
	return d.await(ctx, fmt.Sprintf("volume %s is %s", name, want), func(ctx context.Context) error {
		volume, err := d.client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && phase == "":
			return nil
		case err != nil:
			return err
		case phase == "" || volume.Status.Phase != phase:
			return fmt.Errorf("it is %s", volume.Status.Phase)
		}
		return nil
	})
}

var errNotKept = errors.New("promised otherwise")

// expect turns a promise that is not kept into an error.
func expect(kept bool, format string, args ...any) error {
	if kept {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errNotKept)
}
