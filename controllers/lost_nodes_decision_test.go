package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func lostAt(at string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Annotations = map[string]string{annNodeLostSince: at} }
}

func TestDecideLost(t *testing.T) {
	const (
		del    = corev1.PersistentVolumeReclaimDelete
		retain = corev1.PersistentVolumeReclaimRetain
	)
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	marked := lostAt(noon.Format(time.RFC3339))
	there := lostNode{Present: true, Since: noon, Grace: time.Minute}
	gone := lostNode{Since: noon, Grace: time.Minute}
	late, early := noon.Add(time.Minute), noon.Add(time.Minute-time.Nanosecond)
	ours := newClaim(boundTo("pvc-claim-uid"))
	another := newClaim(func(c *corev1.PersistentVolumeClaim) { c.UID = "another-uid" })
	elsewhere := newClaim(boundTo("other"))

	for name, tt := range map[string]struct {
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		node   lostNode
		now    time.Time
		want   lostAction
	}{
		"the node is there":                                         {newOurVolume(corev1.VolumeBound, del), ours, there, late, lostLeave},
		"the node is there, the claim is gone":                      {newOurVolume(corev1.VolumeReleased, del), nil, there, late, lostLeave},
		"the node is back":                                          {newOurVolume(corev1.VolumeBound, del, marked), ours, there, late, lostUnmark},
		"the node is back, the claim is gone":                       {newOurVolume(corev1.VolumeReleased, del, marked), nil, there, late, lostUnmark},
		"the node has just gone":                                    {newOurVolume(corev1.VolumeBound, del), ours, gone, noon, lostMark},
		"a volume that was not seen before is marked, however late": {newOurVolume(corev1.VolumeReleased, del), nil, gone, late, lostMark},
		"released, in the grace":                                    {newOurVolume(corev1.VolumeReleased, del, marked), nil, gone, early, lostWait},
		"bound, in the grace":                                       {newOurVolume(corev1.VolumeBound, del, marked), ours, gone, early, lostWait},
		"released, after the grace":                                 {newOurVolume(corev1.VolumeReleased, del, marked), nil, gone, late, lostDrop},
		"failed, after the grace":                                   {newOurVolume(corev1.VolumeFailed, del, marked), nil, gone, late, lostDrop},
		"its claim was made anew, after the grace":                  {newOurVolume(corev1.VolumeReleased, del, marked), another, gone, late, lostDrop},
		"bound, after the grace":                                    {newOurVolume(corev1.VolumeBound, del, marked), ours, gone, late, lostReport},
		"bound and retained, after the grace":                       {newOurVolume(corev1.VolumeBound, retain, marked), ours, gone, late, lostReport},
		"released and retained, after the grace":                    {newOurVolume(corev1.VolumeReleased, retain, marked), nil, gone, late, lostKeep},
		"retained, its claim was made anew":                         {newOurVolume(corev1.VolumeReleased, retain, marked), another, gone, late, lostKeep},
		"retained, its claim has another volume":                    {newOurVolume(corev1.VolumeReleased, retain, marked), elsewhere, gone, late, lostKeep},
		"never bound, its claim is gone":                            {newOurVolume(corev1.VolumePending, retain, marked), nil, gone, late, lostDrop},
		"never bound, its claim has another volume":                 {newOurVolume(corev1.VolumePending, retain, marked), elsewhere, gone, late, lostDrop},
		"never bound, its claim waits":                              {newOurVolume(corev1.VolumePending, del, marked), newClaim(), gone, late, lostReport},
		"being deleted while bound":                                 {newOurVolume(corev1.VolumeBound, del, marked, deleting), ours, gone, late, lostReport},
		"being deleted, its claim is gone":                          {newOurVolume(corev1.VolumeReleased, del, marked, deleting), nil, gone, late, lostDrop},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decideLost(tt.volume, tt.claim, decideVolume(tt.volume, tt.claim), tt.node, tt.now); got != tt.want {
				t.Errorf("decision %d, want %d", got, tt.want)
			}
		})
	}
}

// TestGraceBeginsWhenTheFirstVolumeWasMarked: a restart neither shortens it nor
// begins it anew.
func TestGraceBeginsWhenTheFirstVolumeWasMarked(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		marks []string
		want  time.Time
	}{
		"none is marked":                 {[]string{""}, now},
		"all are marked alike":           {[]string{"2026-01-01T11:50:00Z", "2026-01-01T11:50:00Z"}, now.Add(-10 * time.Minute)},
		"one came later":                 {[]string{"2026-01-01T11:58:00Z", "2026-01-01T11:50:00Z", ""}, now.Add(-10 * time.Minute)},
		"a mark ahead of the clock":      {[]string{"2026-01-01T13:00:00Z"}, now},
		"a mark that somebody scribbled": {[]string{"yesterday", "2026-01-01T11:58:00Z"}, now.Add(-2 * time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			var volumes []*corev1.PersistentVolume
			for _, mark := range tt.marks {
				volumes = append(volumes, newOurVolume(corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, lostAt(mark)))
			}
			if got := lostSince(volumes, now); !got.Equal(tt.want) {
				t.Errorf("since %s, want %s", got, tt.want)
			}
		})
	}
}
