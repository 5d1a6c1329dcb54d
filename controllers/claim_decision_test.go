package controllers

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// newClaim returns an unbound claim of 1Gi, ReadWriteOnce, in class "fast",
// changed by edits.
func newClaim(edits ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: "claim-uid", Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("fast"),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: sized("1Gi")},
		},
	}
	for _, edit := range edits {
		edit(claim)
	}
	return claim
}

// newStaticVolume returns an Available volume that fits newClaim, changed by
// edits.
func newStaticVolume(edits ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "static", Labels: map[string]string{"disk": "ssd"}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: "fast",
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:         sized("1Gi"),
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, edit := range edits {
		edit(volume)
	}
	return volume
}

func sized(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

type claimEdit = func(*corev1.PersistentVolumeClaim)

func annotated(key, value string) claimEdit {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[key] = value }
}

func servesOurs(name string) bool { return name == "ours.example.com" }

// choiceOf is the choice of a claim that names class.
func choiceOf(class *storagev1.StorageClass) classChoice {
	return classChoice{Name: class.Name, Class: class}
}

func waiting(class *storagev1.StorageClass) *storagev1.StorageClass {
	class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
	return class
}

func decide(t *testing.T, claim *corev1.PersistentVolumeClaim, choice classChoice, volumes ...*corev1.PersistentVolume) claimDecision {
	t.Helper()
	decision, err := decideClaim(claim, choice, servesOurs, volumes)
	if err != nil {
		t.Fatal(err)
	}
	return decision
}

func TestDecideClaim(t *testing.T) {
	fast := newClass("fast", 0)
	foreign := newClass("fast", 0)
	foreign.Provisioner = "theirs.example.com"
	lazy := waiting(newClass("fast", 0))
	const node = "volume.kubernetes.io/selected-node"

	for name, tt := range map[string]struct {
		claim  *corev1.PersistentVolumeClaim
		choice classChoice
		want   claimAction
		reason string
	}{
		"an unbound claim of our class is provisioned at once": {newClaim(), choiceOf(fast), claimProvision, ""},
		"kube-controller-manager's trigger annotation is not waited for, nor in the way": {
			newClaim(annotated("volume.kubernetes.io/storage-provisioner", "ours.example.com")), choiceOf(fast), claimProvision, ""},
		"a claim being deleted is left": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.DeletionTimestamp = ptr.To(metav1.NewTime(time.Unix(1, 0)))
		}), choiceOf(fast), claimLeave, "being deleted"},
		"a bound claim is left": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName, c.Status.Phase = "pv", corev1.ClaimBound
		}), choiceOf(fast), claimLeave, "bound"},
		"a claim that asks for one volume by name is left": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName = "pv"
		}), choiceOf(fast), claimLeave, "by name"},
		"a claim migrated to CSI is left":               {newClaim(annotated("pv.kubernetes.io/migrated-to", "csi.example.com")), choiceOf(fast), claimLeave, "migrated"},
		"a claim without a class is left":               {newClaim(), classChoice{}, claimLeave, "no class"},
		"a claim of a class yet to come is left":        {newClaim(), classChoice{Name: "fast"}, claimLeave, "does not exist yet"},
		"a claim of a foreign class is left":            {newClaim(), choiceOf(foreign), claimLeave, "another provisioner"},
		"a foreign default class is not assigned":       {newClaim(), classChoice{Name: "fast", Class: foreign, Assign: true}, claimLeave, "another provisioner"},
		"a claim that names no class is given ours":     {newClaim(), classChoice{Name: "fast", Class: fast, Assign: true}, claimAssignClass, ""},
		"a waiting default class is assigned as well":   {newClaim(), classChoice{Name: "fast", Class: lazy, Assign: true}, claimAssignClass, ""},
		"WaitForFirstConsumer waits for a node":         {newClaim(), choiceOf(lazy), claimLeave, "node"},
		"an empty selected node is none":                {newClaim(annotated(node, "")), choiceOf(lazy), claimLeave, "node"},
		"WaitForFirstConsumer acts on a selected node":  {newClaim(annotated(node, "node-1")), choiceOf(lazy), claimProvision, ""},
		"the alpha selected-node annotation counts":     {newClaim(annotated("volume.alpha.kubernetes.io/selected-node", "node-1")), choiceOf(lazy), claimProvision, ""},
		"Immediate does not wait for a node":            {newClaim(annotated(node, "")), choiceOf(fast), claimProvision, ""},
		"a claim with a selector may still be provided": {newClaim(selecting("tape")), choiceOf(fast), claimProvision, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := decide(t, tt.claim, tt.choice)
			if got.Action != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("decideClaim = %+v, want action %v and a reason with %q", got, tt.want, tt.reason)
			}
		})
	}
}

// selecting has a claim ask for volumes by their label disk.
func selecting(disk string) claimEdit {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": disk}}
	}
}

func TestStaticVolumesFirst(t *testing.T) {
	fast, lazy := newClass("fast", 0), waiting(newClass("fast", 0))
	selected := annotated("volume.kubernetes.io/selected-node", "node-1")
	refersTo := func(name string, uid string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID(uid)}
		}
	}
	phase := func(p corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Status.Phase = p }
	}
	capacity := func(size string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized(size) }
	}

	for name, tt := range map[string]struct {
		claim  *corev1.PersistentVolumeClaim
		class  *storagev1.StorageClass
		volume *corev1.PersistentVolume
		leave  bool
	}{
		"an Available volume that fits is left to Kubernetes": {newClaim(), fast, newStaticVolume(), true},
		"a larger volume fits":                                {newClaim(), fast, newStaticVolume(capacity("5Gi")), true},
		"a smaller volume does not fit":                       {newClaim(), fast, newStaticVolume(capacity("1023Mi")), false},
		"the access modes must be there": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), fast, newStaticVolume(), false},
		"every access mode must be there": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}
		}), fast, newStaticVolume(), false},
		"further access modes do no harm": {newClaim(), fast, newStaticVolume(func(v *corev1.PersistentVolume) {
			v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.ReadWriteMany)
		}), true},
		"the selector must match":              {newClaim(selecting("tape")), fast, newStaticVolume(), false},
		"a selector that matches leaves it":    {newClaim(selecting("ssd")), fast, newStaticVolume(), true},
		"a volume of another class is not for": {newClaim(), fast, newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = "slow" }), false},
		"the volume mode must be the same": {newClaim(), fast, newStaticVolume(func(v *corev1.PersistentVolume) {
			v.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
		}), false},
		"the attributes class must be the same": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeAttributesClassName = ptr.To("gold")
		}), fast, newStaticVolume(), false},
		"a volume that is not Available does not count": {newClaim(), fast, newStaticVolume(phase(corev1.VolumeReleased)), false},
		"a volume being deleted does not count": {newClaim(), fast, newStaticVolume(func(v *corev1.PersistentVolume) {
			v.DeletionTimestamp = ptr.To(metav1.NewTime(time.Unix(1, 0)))
		}), false},
		"a volume prebound to the claim by name is waited for":                {newClaim(), fast, newStaticVolume(refersTo("data", ""), phase(corev1.VolumePending)), true},
		"a volume made for the claim is waited for":                           {newClaim(), fast, newStaticVolume(refersTo("data", "claim-uid"), phase(corev1.VolumePending)), true},
		"a volume prebound to another claim does not count":                   {newClaim(), fast, newStaticVolume(refersTo("other", "")), false},
		"a volume of an earlier claim of the name is no match":                {newClaim(), fast, newStaticVolume(refersTo("data", "earlier-uid"), phase(corev1.VolumeReleased)), false},
		"a volume Bound to the claim counts, though the cache has slimmed it": {newClaim(), fast, slimmed(newStaticVolume(refersTo("data", "claim-uid"), phase(corev1.VolumeBound))), true},
		"a volume Bound to an earlier claim of the name does not count":       {newClaim(), fast, newStaticVolume(refersTo("data", "earlier-uid"), phase(corev1.VolumeBound)), false},
		"a volume Released by the claim does not count":                       {newClaim(), fast, slimmed(newStaticVolume(refersTo("data", "claim-uid"), phase(corev1.VolumeReleased))), false},
		"delayed binding ignores unbound volumes":                             {newClaim(selected), lazy, newStaticVolume(), false},
		"delayed binding waits for a volume prebound to it":                   {newClaim(selected), lazy, newStaticVolume(refersTo("data", "")), true},
		"a prebound volume that is too small does not hold it":                {newClaim(), fast, newStaticVolume(refersTo("data", ""), capacity("1Mi")), false},
		"a prebound volume of other access modes is no candidate": {newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), fast, newStaticVolume(refersTo("data", "")), false},
	} {
		t.Run(name, func(t *testing.T) {
			got := decide(t, tt.claim, choiceOf(tt.class), tt.volume)
			switch {
			case tt.leave && (got.Action != claimLeave || !strings.Contains(got.Reason, "static")):
				t.Errorf("decideClaim = %+v, want to leave the claim to volume static", got)
			case !tt.leave && got.Action != claimProvision:
				t.Errorf("decideClaim = %+v, want to provision", got)
			}
		})
	}
}

// slimmed returns volume as the cache holds it.
func slimmed(volume *corev1.PersistentVolume) *corev1.PersistentVolume {
	if _, err := slimVolume(servesOurs)(volume); err != nil {
		panic(err)
	}
	return volume
}

func TestClasslessClaimPrefersClasslessVolumeOverDefaultClass(t *testing.T) {
	claim := newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	classless := newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = "" })
	for name, class := range map[string]*storagev1.StorageClass{
		"Immediate":            newClass("fast", 0),
		"WaitForFirstConsumer": waiting(newClass("fast", 0)),
	} {
		t.Run(name, func(t *testing.T) {
			choice := classChoice{Name: class.Name, Class: class, Assign: true}
			if got := decide(t, claim, choice, classless); got.Action != claimLeave {
				t.Errorf("decideClaim = %+v, want to leave the claim to the volume", got)
			}
			inClass := newStaticVolume()
			if got := decide(t, claim, choice, inClass); got.Action != claimAssignClass {
				t.Errorf("decideClaim = %+v, want to assign the class first: Kubernetes would not bind %s", got, inClass.Name)
			}
		})
	}
}

func TestImpossibleSelectorIsAnError(t *testing.T) {
	claim := newClaim(func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Around"}}}
	})
	if _, err := decideClaim(claim, choiceOf(newClass("fast", 0)), servesOurs, nil); err == nil {
		t.Error("decideClaim = nil error for a selector that can't be read")
	}
}

func TestDecidingLeavesTheVolumesAsTheyAre(t *testing.T) {
	volumes := []*corev1.PersistentVolume{
		newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.AccessModes = nil }),
		newStaticVolume(),
	}
	first, second := volumes[0], volumes[1]
	decide(t, newClaim(), choiceOf(newClass("fast", 0)), volumes...)
	if volumes[0] != first || volumes[1] != second {
		t.Error("the caller's slice, which is the cache's, was changed")
	}
}

func TestVolumeMustSatisfyItsClaim(t *testing.T) {
	for name, tt := range map[string]struct {
		volume  *corev1.PersistentVolume
		mention string
	}{
		"it fits":                  {newStaticVolume(), ""},
		"larger is fine":           {newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("2Gi") }), ""},
		"too small":                {newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.Capacity = sized("1Mi") }), "smaller than the 1Gi"},
		"without a capacity":       {newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.Capacity = nil }), "smaller"},
		"of another volume mode":   {newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }), "volumeMode"},
		"without the access modes": {newStaticVolume(func(v *corev1.PersistentVolume) { v.Spec.AccessModes = nil }), "ReadWriteOnce"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkVolumeSatisfiesClaim(tt.volume, newClaim())
			if tt.mention == "" && err != nil || tt.mention != "" && (err == nil || !strings.Contains(err.Error(), tt.mention)) {
				t.Errorf("checkVolumeSatisfiesClaim = %v, want it to mention %q", err, tt.mention)
			}
		})
	}
}
