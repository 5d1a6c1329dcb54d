package controllers

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/berth-storage/berth/provisioner"
)

func storage(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

func TestDecideExpansion(t *testing.T) {
	type pair struct {
		claim  *corev1.PersistentVolumeClaim
		volume *corev1.PersistentVolume
	}
	failed := []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimControllerResizeError}}
	for name, test := range map[string]struct {
		edit func(pair)
		want expansionAction
	}{
		"enough":                  {func(pair) {}, expansionLeave},
		"the claim asks for more": {func(p pair) { p.claim.Spec.Resources.Requests = storage("2Gi") }, expansionGrow},
		"the same in other words": {func(p pair) { p.claim.Spec.Resources.Requests = storage("1024Mi") }, expansionLeave},
		"the claim asks for less": {func(p pair) { p.claim.Spec.Resources.Requests = storage("1Mi") }, expansionLeave},
		"the volume has grown before a crash": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.volume.Spec.Capacity = storage("2Gi"), storage("2Gi")
		}, expansionReport},
		"the volume is larger than anybody asked for": {func(p pair) { p.volume.Spec.Capacity = storage("3Gi") }, expansionLeave},
		"a failure was given up":                      {func(p pair) { p.claim.Status.Conditions = failed }, expansionReport},
		"a failure is tried again": {func(p pair) {
			p.claim.Status.Conditions, p.claim.Spec.Resources.Requests = failed, storage("2Gi")
		}, expansionGrow},
		"the claim is not bound": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.claim.Status.Phase = storage("2Gi"), corev1.ClaimPending
		}, expansionLeave},
		"the volume is not bound": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.volume.Status.Phase = storage("2Gi"), corev1.VolumeReleased
		}, expansionLeave},
		"another claim's volume": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.volume.Spec.ClaimRef.UID = storage("2Gi"), "another"
		}, expansionLeave},
		"nobody's volume": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.volume.Spec.ClaimRef = storage("2Gi"), nil
		}, expansionLeave},
		"another volume": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.claim.Spec.VolumeName = storage("2Gi"), "another"
		}, expansionLeave},
		"the claim is going": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.claim.DeletionTimestamp = storage("2Gi"), &metav1.Time{Time: time.Now()}
		}, expansionLeave},
		"the volume is going": {func(p pair) {
			p.claim.Spec.Resources.Requests, p.volume.DeletionTimestamp = storage("2Gi"), &metav1.Time{Time: time.Now()}
		}, expansionLeave},
	} {
		t.Run(name, func(t *testing.T) {
			p := pair{
				&corev1.PersistentVolumeClaim{
					ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "uid"},
					Spec: corev1.PersistentVolumeClaimSpec{
						VolumeName: "volume", Resources: corev1.VolumeResourceRequirements{Requests: storage("1Gi")},
					},
					Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: storage("1Gi")},
				},
				&corev1.PersistentVolume{
					ObjectMeta: metav1.ObjectMeta{Name: "volume"},
					Spec:       corev1.PersistentVolumeSpec{Capacity: storage("1Gi"), ClaimRef: &corev1.ObjectReference{UID: "uid"}},
					Status:     corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
				},
			}
			test.edit(p)
			if got := decideExpansion(p.claim, p.volume).action; got != test.want {
				t.Errorf("action = %v, want %v", got, test.want)
			}
		})
	}
}

func TestRefusalsAreToldFromSilence(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"no room":                {status.Error(codes.ResourceExhausted, "no room"), true},
		"no room, and where":     {fmt.Errorf("node: %w", status.Error(codes.ResourceExhausted, "no room")), true},
		"an administrator's job": {status.Error(codes.FailedPrecondition, "the marker is damaged"), true},
		"never":                  {provisioner.Infeasible("field", "value", "problem"), true},
		"the driver's own words": {errors.New("the disk is read-only"), true},
		"the server is away":     {&provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("away")}, false},
		"unavailable":            {status.Error(codes.Unavailable, "away"), false},
		"under way":              {status.Error(codes.Aborted, "another call is at work"), false},
		"no answer in time":      {fmt.Errorf("node: %w", status.Error(codes.DeadlineExceeded, "too late")), false},
		"too late":               {fmt.Errorf("node: %w", context.DeadlineExceeded), false},
		"given up":               {context.Canceled, false},
	} {
		if got := refusedExpansion(test.err); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
}

func TestOnlyWhatChangesAnExpansionHastensIt(t *testing.T) {
	condition := func(message string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimControllerResizeError, Message: message}}
		}
	}
	for name, test := range map[string]struct {
		edits []func(*corev1.PersistentVolumeClaim)
		want  bool
	}{
		"seen again":    {nil, true},
		"a condition":   {[]func(*corev1.PersistentVolumeClaim){condition("no room")}, false},
		"an annotation": {[]func(*corev1.PersistentVolumeClaim){func(c *corev1.PersistentVolumeClaim) { c.Annotations = map[string]string{"a": "b"} }}, false},
		"what is allocated": {[]func(*corev1.PersistentVolumeClaim){func(c *corev1.PersistentVolumeClaim) {
			c.Status.AllocatedResources = storage("2Gi")
			c.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: corev1.PersistentVolumeClaimControllerResizeInProgress}
		}}, false},
		"another size":           {[]func(*corev1.PersistentVolumeClaim){func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("3Gi") }}, true},
		"another size, and more": {[]func(*corev1.PersistentVolumeClaim){condition("no room"), func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("3Gi") }}, true},
		"it has grown":           {[]func(*corev1.PersistentVolumeClaim){func(c *corev1.PersistentVolumeClaim) { c.Status.Capacity = storage("2Gi") }}, false},
	} {
		before := &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "uid", ResourceVersion: "1"},
			Spec:       corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: storage("2Gi")}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: storage("1Gi")},
		}
		after := before.DeepCopy()
		for _, edit := range test.edits {
			edit(after)
			after.ResourceVersion = "2"
		}
		if got := asksForMore().Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
		if !asksForMore().Create(event.CreateEvent{Object: before}) {
			t.Errorf("%s: a claim that was not seen before is left out", name)
		}
	}
}
