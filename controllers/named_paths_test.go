package controllers

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// slowLists takes its time for every list of volumes.
type slowLists struct {
	client.Reader
	clock *clocktesting.FakePassiveClock
	takes time.Duration
	lists int
}

func (s *slowLists) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	s.lists++
	s.clock.SetTime(s.clock.Now().Add(s.takes))
	named := newOurVolume(corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete)
	named.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/named"}}
	list.(*corev1.PersistentVolumeList).Items = []corev1.PersistentVolume{*named}
	return nil
}

// A list that takes longer than one is fresh serves the next ones all the same, or a
// sweep of many orphans would never end.
func TestSlowListServesMoreThanOne(t *testing.T) {
	reader := &slowLists{clock: clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0)), takes: 6 * time.Second}
	named := &namedPaths{reader: reader, clock: reader.clock, fresh: 5 * time.Second}
	for i := range 10 {
		if volume, err := named.by(t.Context(), fmt.Sprint("/srv/orphan-", i), ""); err != nil || volume != "" {
			t.Errorf("by = %q, %v", volume, err)
		}
	}
	if reader.lists != 1 {
		t.Errorf("%d lists for 10 orphans", reader.lists)
	}
	reader.clock.SetTime(reader.clock.Now().Add(6 * time.Second))
	if volume, err := named.by(t.Context(), "/srv/named", ""); err != nil || volume == "" || reader.lists != 2 {
		t.Errorf("by = %q, %v, after %d lists", volume, err, reader.lists)
	}
}
