package controllers

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

// claimAction is what to do with a claim.
type claimAction int

const (
	// claimLeave: nothing to do until the claim, its class or a volume changes.
	claimLeave claimAction = iota
	// claimAssignClass: write the default class into the claim first.
	claimAssignClass
	// claimProvision: make a volume now.
	claimProvision
)

// claimDecision is an action and why it was chosen.
type claimDecision struct {
	Action claimAction
	Reason string
}

// decideClaim says what to do with claim, whose class is choice. serves tells
// whether a driver is registered under a provisioner's name. volumes are the
// ones that the cluster could bind to the claim: those that are Available in
// its class, and those that refer to it.
func decideClaim(claim *corev1.PersistentVolumeClaim, choice classChoice, serves func(string) bool, volumes []*corev1.PersistentVolume) (claimDecision, error) {
	if reason := claimNeedsNoVolume(claim); reason != "" {
		return claimDecision{Reason: reason}, nil
	}
	switch {
	case choice.Name == "":
		return claimDecision{Reason: "the claim has no class"}, nil
	case choice.Class == nil:
		return claimDecision{Reason: "the claim's class does not exist yet"}, nil
	case !serves(choice.Class.Provisioner):
		return claimDecision{Reason: "the claim's class belongs to another provisioner"}, nil
	}
	existing, err := existingVolume(claim, volumes, !choice.Assign && waitsForConsumer(choice.Class))
	if err != nil {
		return claimDecision{}, err
	}
	switch {
	case existing != nil:
		return claimDecision{Reason: fmt.Sprintf("volume %s satisfies the claim", existing.Name)}, nil
	case choice.Assign:
		return claimDecision{Action: claimAssignClass, Reason: "the claim names no class"}, nil
	case waitsForConsumer(choice.Class) && selectedNode(claim) == "":
		return claimDecision{Reason: "no pod that uses the claim has been given a node yet"}, nil
	}
	return claimDecision{Action: claimProvision}, nil
}

// claimNeedsNoVolume says why claim, whatever its class, needs no new volume;
// "" when it may need one.
func claimNeedsNoVolume(claim *corev1.PersistentVolumeClaim) string {
	switch {
	case claim.DeletionTimestamp != nil:
		return "the claim is being deleted"
	case claim.Spec.VolumeName != "":
		return "the claim is bound, or asks for one volume by name"
	case claim.Annotations[volumehelpers.AnnMigratedTo] != "":
		return "the claim was migrated to a CSI driver"
	}
	return ""
}

// existingVolume returns the volume that the cluster will bind to claim, or
// nil. It is what kube-controller-manager asks before it has a volume
// provisioned (pkg/controller/volume/persistentvolume/index.go,
// findBestMatchForClaim): the access modes first, then FindMatchingVolume. With
// delayBinding only volumes that already refer to the claim count, since
// kube-scheduler chooses among the others.
//
// A volume that is already called Bound, to this very claim, is taken at its
// word: of other provisioners' bound volumes the cache keeps nothing to compare.
func existingVolume(claim *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delayBinding bool) (*corev1.PersistentVolume, error) {
	boundToClaim := func(v *corev1.PersistentVolume) bool {
		return v.Status.Phase == corev1.VolumeBound && v.DeletionTimestamp == nil &&
			volumehelpers.IsVolumeBoundToClaim(v, claim) && v.Spec.ClaimRef.UID == claim.UID
	}
	if i := slices.IndexFunc(volumes, boundToClaim); i >= 0 {
		return volumes[i], nil
	}
	candidates := slices.DeleteFunc(slices.Clone(volumes), func(v *corev1.PersistentVolume) bool {
		return !volumehelpers.CheckAccessModes(claim, v)
	})
	const volumeAttributesClasses = true
	volume, err := volumehelpers.FindMatchingVolume(claim, candidates, nil, nil, delayBinding, volumeAttributesClasses)
	if err != nil {
		return nil, fmt.Errorf("match claim with existing volumes: %w", err)
	}
	return volume, nil
}

// checkVolumeSatisfiesClaim returns an error when the cluster would refuse to
// bind volume to claim (kube-controller-manager, checkVolumeSatisfyClaim), so
// that a driver's mistake is told at once instead of leaving both unbound for
// ever.
func checkVolumeSatisfiesClaim(volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	requested := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	capacity := volume.Spec.Capacity[corev1.ResourceStorage]
	switch {
	case capacity.Cmp(requested) < 0:
		return fmt.Errorf("the driver made a volume of %s, smaller than the %s requested", capacity.String(), requested.String())
	case volumehelpers.CheckVolumeModeMismatches(&claim.Spec, &volume.Spec):
		return fmt.Errorf("the driver made a volume of another volumeMode than the claim's")
	case !volumehelpers.CheckAccessModes(claim, volume):
		return fmt.Errorf("the driver made a volume with access modes %v, the claim asks for %v", volume.Spec.AccessModes, claim.Spec.AccessModes)
	}
	return nil
}
