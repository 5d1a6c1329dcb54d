package controllers

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	inProgress = corev1.PersistentVolumeClaimControllerResizeInProgress
	infeasible = corev1.PersistentVolumeClaimControllerResizeInfeasible
)

// sizesOf are those of a claim and its volume, in GiB. 0 allocated is nothing.
type sizesOf struct {
	request, allocated, volume, claim int64
	status                            corev1.ClaimResourceStatus
}

func (s sizesOf) String() string {
	return fmt.Sprintf("request %d, allocated %d %q, volume %d, claim %d", s.request, s.allocated, s.status, s.volume, s.claim)
}

func (s sizesOf) pair() (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{UID: "uid"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "volume", Resources: corev1.VolumeResourceRequirements{Requests: gibibytes(s.request)}},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: gibibytes(s.claim)},
	}
	if s.allocated > 0 {
		claim.Status.AllocatedResources = gibibytes(s.allocated)
	}
	if s.status != "" {
		claim.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: s.status}
	}
	return claim, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "volume"},
		Spec:       corev1.PersistentVolumeSpec{Capacity: gibibytes(s.volume), ClaimRef: &corev1.ObjectReference{UID: "uid"}},
		Status:     corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
}

func TestDecideExpansionBySizes(t *testing.T) {
	for name, test := range map[string]struct {
		sizesOf
		want      expansionAction
		size      int64
		allocated bool
	}{
		"settled, never grown":                               {sizesOf{1, 0, 1, 1, ""}, expansionLeave, 0, false},
		"settled, grown":                                     {sizesOf{2, 2, 2, 2, ""}, expansionLeave, 0, false},
		"settled, less asked for while it grew":              {sizesOf{2, 4, 4, 4, ""}, expansionLeave, 0, false},
		"grown by an earlier release":                        {sizesOf{2, 0, 2, 2, ""}, expansionLeave, 0, false},
		"larger than asked for from the beginning":           {sizesOf{1, 0, 3, 3, ""}, expansionLeave, 0, false},
		"the first request":                                  {sizesOf{2, 0, 1, 1, ""}, expansionGrow, 2, false},
		"the second request":                                 {sizesOf{3, 2, 2, 2, ""}, expansionGrow, 3, false},
		"in progress":                                        {sizesOf{2, 2, 1, 1, inProgress}, expansionGrow, 2, true},
		"in progress, and less asked for":                    {sizesOf{2, 4, 1, 1, inProgress}, expansionGrow, 4, true},
		"in progress, and more asked for":                    {sizesOf{4, 2, 1, 1, inProgress}, expansionGrow, 2, true},
		"allocated, and somebody removed the status":         {sizesOf{2, 4, 1, 1, ""}, expansionGrow, 4, false},
		"refused, and tried again":                           {sizesOf{4, 4, 1, 1, infeasible}, expansionGrow, 4, false},
		"refused, and less asked for":                        {sizesOf{2, 4, 1, 1, infeasible}, expansionGrow, 2, false},
		"refused, and more asked for":                        {sizesOf{4, 3, 1, 1, infeasible}, expansionGrow, 4, false},
		"refused to one leader, granted to another":          {sizesOf{2, 4, 4, 1, infeasible}, expansionReport, 0, false},
		"the volume is written":                              {sizesOf{2, 2, 2, 1, inProgress}, expansionReport, 0, false},
		"the volume is written, and less asked for":          {sizesOf{2, 4, 4, 1, inProgress}, expansionReport, 0, false},
		"the volume is written, and more asked for":          {sizesOf{4, 2, 2, 1, inProgress}, expansionReport, 0, false},
		"an earlier release wrote the volume":                {sizesOf{2, 0, 2, 1, ""}, expansionReport, 0, false},
		"an earlier release wrote it, and less is asked for": {sizesOf{2, 0, 4, 1, ""}, expansionReport, 0, false},
		"an earlier release did not take the status back":    {sizesOf{2, 2, 2, 2, inProgress}, expansionReport, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := decideExpansion(test.pair())
			if got.action != test.want || got.size.Value() != test.size*gi || got.allocated != test.allocated {
				t.Errorf("%s: action %v, size %s, allocated %t; want %v, %dGi, %t", test.sizesOf, got.action, got.size.String(), got.allocated, test.want, test.size, test.allocated)
			}
		})
	}
}

// TestEveryCombinationOfSizesIsSafe holds every combination of sizes against what
// must be true of any.
func TestEveryCombinationOfSizesIsSafe(t *testing.T) {
	const most = 4
	combinations := 0
	for request := range int64(most) {
		for allocated := range int64(most + 1) {
			for volume := range int64(most) {
				for claim := range int64(most) {
					for _, status := range []corev1.ClaimResourceStatus{"", inProgress, infeasible, corev1.PersistentVolumeClaimNodeResizePending} {
						combinations++
						checkSizes(t, sizesOf{request + 1, allocated, volume + 1, claim + 1, status})
					}
				}
			}
		}
	}
	if combinations != 4*5*4*4*4 {
		t.Errorf("%d combinations", combinations)
	}
}

func checkSizes(t *testing.T, s sizesOf) {
	t.Helper()
	claim, volume := s.pair()
	step := decideExpansion(claim, volume)
	underWay := s.allocated > s.volume && s.status != infeasible
	wants := s.request > s.claim || s.status == inProgress || s.status == infeasible
	size := step.size.Value() / gi
	switch step.action {
	case expansionLeave:
		if wants {
			t.Errorf("%s: left alone", s)
		}
	case expansionGrow:
		switch {
		case !wants:
			t.Errorf("%s: grown, and nobody asked for it", s)
		case size <= s.volume:
			t.Errorf("%s: grown to %d", s, size)
		case size > max(s.request, s.allocated):
			t.Errorf("%s: grown to %d, which is not counted", s, size)
		case underWay && size != s.allocated:
			t.Errorf("%s: grown to %d before what is under way is through", s, size)
		case step.allocated != (s.status == inProgress && size == s.allocated):
			t.Errorf("%s: allocated = %t", s, step.allocated)
		}
	case expansionReport:
		if underWay {
			t.Errorf("%s: reported before it is through", s)
		}
		if !wants {
			t.Errorf("%s: reported, and there is nothing new", s)
		}
		checkReport(t, s, claim, volume)
	}
}

// checkReport checks what a claim counts for once it was reported what its volume
// has, and that this was a step ahead.
func checkReport(t *testing.T, s sizesOf, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
	t.Helper()
	before := quotaCounts(claim)
	size, write := reportedAllocation(claim, volume)
	if write {
		claim.Status.AllocatedResources = corev1.ResourceList{corev1.ResourceStorage: size}
	}
	if has := volume.Spec.Capacity.Storage().Value(); claim.Status.Capacity.Storage().Value() < has && quotaCounts(claim) < has {
		t.Errorf("%s: %d is granted, and quotas count %d", s, has/gi, quotaCounts(claim)/gi)
	}
	if quotaCounts(claim) < before && s.status != infeasible {
		t.Errorf("%s: quotas count less, and nothing was refused", s)
	}
	claim.Status.Capacity, claim.Status.AllocatedResourceStatuses = volume.Spec.Capacity, nil
	if next := decideExpansion(claim, volume); next.action == expansionReport {
		t.Errorf("%s: reported again and again", s)
	}
}

func TestAllocationIsInWhateverUnitsTheClaimHas(t *testing.T) {
	claim, volume := sizesOf{1, 1, 1, 1, inProgress}.pair()
	claim.Spec.Resources.Requests = storage("2Gi")
	claim.Status.AllocatedResources = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2048Mi")}
	if step := decideExpansion(claim, volume); step.action != expansionGrow || !step.allocated {
		t.Errorf("%+v: 2Gi is allocated", step)
	}
}
