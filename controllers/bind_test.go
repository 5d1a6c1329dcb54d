package controllers

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func claimPhase(phase corev1.PersistentVolumeClaimPhase) claimEdit {
	return func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = phase }
}

func TestDecideBind(t *testing.T) {
	const del = corev1.PersistentVolumeReclaimDelete
	pending := newOurVolume(corev1.VolumePending, del)
	bound := newOurVolume(corev1.VolumeBound, del)
	const name = "pvc-claim-uid"

	for rule, tt := range map[string]struct {
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		want   bindProgress
	}{
		"nothing is written yet":                           {pending, newClaim(claimPhase(corev1.ClaimPending)), bindOpen},
		"the volume's phase is written":                    {bound, newClaim(claimPhase(corev1.ClaimPending)), bindOpen},
		"the claim's volume is written":                    {bound, newClaim(boundTo(name), claimPhase(corev1.ClaimPending)), bindOpen},
		"all but the volume's phase is written":            {pending, newClaim(boundTo(name), claimPhase(corev1.ClaimBound)), bindOpen},
		"both are Bound":                                   {bound, newClaim(boundTo(name), claimPhase(corev1.ClaimBound)), bindDone},
		"a Lost claim whose volume is there":               {bound, newClaim(boundTo(name), claimPhase(corev1.ClaimLost)), bindLost},
		"a Lost claim whose volume is still Pending":       {pending, newClaim(boundTo(name), claimPhase(corev1.ClaimLost)), bindLost},
		"there is no claim":                                {pending, nil, bindMoot},
		"the claim has another UID":                        {pending, newClaim(func(c *corev1.PersistentVolumeClaim) { c.UID = "another" }), bindMoot},
		"the claim is bound elsewhere":                     {pending, newClaim(boundTo("static"), claimPhase(corev1.ClaimBound)), bindMoot},
		"the claim is bound elsewhere and Lost there":      {pending, newClaim(boundTo("static"), claimPhase(corev1.ClaimLost)), bindMoot},
		"the claim is being deleted and unbound":           {pending, newClaim(claimDeleting), bindMoot},
		"the claim is being deleted, its bind half done":   {bound, newClaim(claimDeleting, boundTo(name), claimPhase(corev1.ClaimPending)), bindOpen},
		"the volume is being deleted":                      {newOurVolume(corev1.VolumePending, del, deleting), newClaim(), bindMoot},
		"the volume refers to no claim":                    {newOurVolume(corev1.VolumeAvailable, del, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil }), newClaim(), bindMoot},
		"the volume is reserved for whoever has that name": {newOurVolume(corev1.VolumePending, del, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "" }), newClaim(), bindMoot},
	} {
		t.Run(rule, func(t *testing.T) {
			if got := decideBind(tt.volume, tt.claim); got != tt.want {
				t.Errorf("decideBind = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTriggeredMeansNoFurtherWriteIsDue(t *testing.T) {
	for name, tt := range map[string]struct {
		claim *corev1.PersistentVolumeClaim
		want  bool
	}{
		"a bare claim":            {newClaim(), false},
		"other annotations":       {newClaim(annotated("volume.kubernetes.io/selected-node", "n")), false},
		"the trigger annotation":  {newClaim(annotated("volume.kubernetes.io/storage-provisioner", "p")), true},
		"its beta form":           {newClaim(annotated("volume.beta.kubernetes.io/storage-provisioner", "p")), true},
		"the claim has a volume":  {newClaim(boundTo("pv")), true},
		"an empty one is no mark": {newClaim(annotated("volume.kubernetes.io/storage-provisioner", "")), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := isTriggered(tt.claim); got != tt.want {
				t.Errorf("isTriggered = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestBinderWakesForChangesOfTheBindOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after *corev1.PersistentVolumeClaim
		want          bool
	}{
		"the trigger annotation comes":    {newClaim(), newClaim(annotated("volume.kubernetes.io/storage-provisioner", "p")), true},
		"the volume is set":               {newClaim(), newClaim(boundTo("pv")), true},
		"the phase changes":               {newClaim(boundTo("pv")), newClaim(boundTo("pv"), claimPhase(corev1.ClaimLost)), true},
		"a label or annotation changes":   {newClaim(), newClaim(annotated("a", "b")), false},
		"a resync shows the same":         {newClaim(), newClaim(), false},
		"deletion of a claim being begun": {newClaim(), newClaim(claimDeleting), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := bindMoved(tt.before, tt.after); got != tt.want {
				t.Errorf("passes %v, want %v", got, tt.want)
			}
		})
	}
}
