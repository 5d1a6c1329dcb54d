package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const deletionFinalizer = "external-provisioner.volume.kubernetes.io/finalizer"

// newOurVolume returns a volume as ClaimReconciler writes it for newClaim, in
// phase, with the finalizer its policy calls for.
func newOurVolume(phase corev1.PersistentVolumePhase, policy corev1.PersistentVolumeReclaimPolicy, edits ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-claim-uid"},
		Spec: corev1.PersistentVolumeSpec{
			ClaimRef:                      &corev1.ObjectReference{Namespace: "ns", Name: "data", UID: "claim-uid"},
			PersistentVolumeReclaimPolicy: policy,
		},
		Status: corev1.PersistentVolumeStatus{Phase: phase},
	}
	if policy == corev1.PersistentVolumeReclaimDelete {
		volume.Finalizers = []string{deletionFinalizer}
	}
	for _, edit := range edits {
		edit(volume)
	}
	return volume
}

func finalizers(f ...string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Finalizers = f }
}

func deleting(v *corev1.PersistentVolume) {
	v.DeletionTimestamp = ptr.To(metav1.NewTime(time.Unix(1, 0)))
}

func boundTo(volume string) claimEdit {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func TestDecideVolume(t *testing.T) {
	const (
		pending  = corev1.VolumePending
		bound    = corev1.VolumeBound
		released = corev1.VolumeReleased
		failed   = corev1.VolumeFailed
		del      = corev1.PersistentVolumeReclaimDelete
		retain   = corev1.PersistentVolumeReclaimRetain
		recycle  = corev1.PersistentVolumeReclaimRecycle
	)
	ours := newClaim(boundTo("pvc-claim-uid"))
	another := newClaim(func(c *corev1.PersistentVolumeClaim) { c.UID = "another-uid" })

	for name, tt := range map[string]struct {
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		want   volumeAction
	}{
		// Never bound: phase Pending.
		"a fresh volume waits for its bind":                        {newOurVolume(pending, del), newClaim(), volumeLeave},
		"a fresh volume whose claim is gone is undone":             {newOurVolume(pending, del), nil, volumeUndo},
		"never bound is undone whatever the policy":                {newOurVolume(pending, retain), nil, volumeUndo},
		"never bound is undone when the claim is another's":        {newOurVolume(pending, retain), another, volumeUndo},
		"never bound is undone when the claim is bound elsewhere":  {newOurVolume(pending, retain), newClaim(boundTo("static")), volumeUndo},
		"an undo that was begun goes on":                           {newOurVolume(pending, del, deleting), nil, volumeUndo},
		"one that is being deleted before its bind is undone":      {newOurVolume(pending, del, deleting), newClaim(), volumeUndo},
		"a claim that names the volume keeps it, whatever phase":   {newOurVolume(pending, del), ours, volumeLeave},
		"bound once is not never bound, though the claim moved on": {newOurVolume(released, retain), newClaim(boundTo("static")), volumeLeave},
		"released since the claim is bound elsewhere is reclaimed": {newOurVolume(released, del), newClaim(boundTo("static")), volumeReclaim},
		"failed since the claim is bound elsewhere is reclaimed":   {newOurVolume(failed, del), newClaim(boundTo("static")), volumeReclaim},
		"released while the claim names it keeps its storage":      {newOurVolume(released, del), ours, volumeLeave},
		"released while the claim is unbound keeps its storage":    {newOurVolume(released, del), newClaim(), volumeLeave},
		"a bound volume is not undone when the claim is elsewhere": {newOurVolume(bound, del), newClaim(boundTo("static")), volumeLeave},

		// The claim is gone: the volume's policy.
		"Delete: released is reclaimed":                             {newOurVolume(released, del), nil, volumeReclaim},
		"Delete: bound, claim gone, is reclaimed":                   {newOurVolume(bound, del), nil, volumeReclaim},
		"Delete: failed is tried again":                             {newOurVolume(failed, del), nil, volumeReclaim},
		"Delete: same name, another UID, is reclaimed":              {newOurVolume(released, del), another, volumeReclaim},
		"Delete: being deleted is reclaimed":                        {newOurVolume(released, del, deleting), nil, volumeReclaim},
		"Delete: without the finalizer is reclaimed":                {newOurVolume(released, del, finalizers()), nil, volumeReclaim},
		"Retain: released is left":                                  {newOurVolume(released, retain), nil, volumeLeave},
		"Retain: same name, another UID, is left":                   {newOurVolume(bound, retain), another, volumeLeave},
		"Retain: being deleted by an admin is left":                 {newOurVolume(released, retain, deleting), nil, volumeLeave},
		"Retain: with the finalizer lets go of it":                  {newOurVolume(released, retain, finalizers(deletionFinalizer)), nil, volumeUnprotect},
		"Retain: being deleted with the finalizer lets go of it":    {newOurVolume(released, retain, finalizers(deletionFinalizer), deleting), nil, volumeUnprotect},
		"Recycle is not ours to do":                                 {newOurVolume(released, recycle), nil, volumeLeave},
		"an admin's deletion of a bound volume waits for the claim": {newOurVolume(bound, del, deleting), ours, volumeLeave},

		// The finalizer follows the policy.
		"Delete, bound, protected":                               {newOurVolume(bound, del), ours, volumeLeave},
		"Delete, bound, unprotected is protected":                {newOurVolume(bound, del, finalizers()), ours, volumeProtect},
		"Delete, bound, others' finalizers don't protect":        {newOurVolume(bound, del, finalizers("kubernetes.io/pv-protection")), ours, volumeProtect},
		"Delete, unbound, unprotected waits for the bind":        {newOurVolume(pending, del, finalizers()), newClaim(), volumeLeave},
		"Delete, being deleted can't be protected any more":      {newOurVolume(bound, del, finalizers(), deleting), ours, volumeLeave},
		"Retain, bound, protected is let go":                     {newOurVolume(bound, retain, finalizers(deletionFinalizer)), ours, volumeUnprotect},
		"Retain, pending, protected is let go":                   {newOurVolume(pending, retain, finalizers(deletionFinalizer)), newClaim(), volumeUnprotect},
		"Retain, bound, unprotected":                             {newOurVolume(bound, retain), ours, volumeLeave},
		"Retain, others' finalizers are others'":                 {newOurVolume(bound, retain, finalizers("kubernetes.io/pv-protection")), ours, volumeLeave},
		"a claim being deleted still has its volume":             {newOurVolume(bound, del), newClaim(boundTo("pvc-claim-uid"), claimDeleting), volumeLeave},
		"an unbound claim being deleted may still be waited for": {newOurVolume(pending, del), newClaim(claimDeleting), volumeLeave},

		// Not bound dynamically.
		"a volume without claimRef is an administrator's":           {newOurVolume(released, del, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil }), nil, volumeLeave},
		"a claimRef without UID is a reservation, not a claim gone": {newOurVolume(pending, del, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "" }), nil, volumeLeave},
		"a reservation for an existing claim is left":               {newOurVolume(released, del, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "" }), newClaim(), volumeLeave},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decideVolume(tt.volume, tt.claim); got != tt.want {
				t.Errorf("decideVolume = %v, want %v", got, tt.want)
			}
		})
	}
}

func claimDeleting(c *corev1.PersistentVolumeClaim) {
	c.DeletionTimestamp = ptr.To(metav1.NewTime(time.Unix(1, 0)))
}
