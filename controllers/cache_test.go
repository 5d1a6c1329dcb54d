package controllers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

var bulky = []metav1.ManagedFieldsEntry{{Manager: "someone"}}

func transform[T client.Object](t *testing.T, by toolscache.TransformFunc, object T) T {
	t.Helper()
	got, err := by(object)
	if err != nil {
		t.Fatal(err)
	}
	return got.(T)
}

// transformOf returns the transform that CacheOptions sets for objects like o.
func transformOf(t *testing.T, o client.Object) toolscache.TransformFunc {
	t.Helper()
	for object, by := range CacheOptions(servesOurs).ByObject {
		if cmp.Equal(object, o) {
			return by.Transform
		}
	}
	t.Fatalf("the cache holds %T as it is", o)
	return nil
}

func TestUnboundClaimsAreCachedWithAllADriverMayAskFor(t *testing.T) {
	full := newClaim(annotated("team", "a"), annotated("volume.kubernetes.io/selected-node", "n"), selecting("ssd"),
		func(c *corev1.PersistentVolumeClaim) {
			c.Labels = map[string]string{"l": "v"}
			c.ResourceVersion = "7"
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "origin"}
		})
	want := full.DeepCopy()
	full.ManagedFields = bulky
	full.Annotations[lastApplied] = "{}"
	got := transform(t, transformOf(t, &corev1.PersistentVolumeClaim{}), full)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cached claim (-want +got):\n%s", diff)
	}
}

func TestBoundClaimsAreCachedByIdentityAndBinding(t *testing.T) {
	full := newClaim(annotated("team", "a"), boundTo("pv"), claimPhase(corev1.ClaimBound), claimDeleting, func(c *corev1.PersistentVolumeClaim) {
		c.Labels = map[string]string{"l": "v"}
		c.OwnerReferences = []metav1.OwnerReference{{Name: "set"}}
		c.ManagedFields = bulky
		c.ResourceVersion = "7"
		c.Status.Capacity = sized("1Gi")
	})
	want := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: "claim-uid", ResourceVersion: "7", DeletionTimestamp: full.DeletionTimestamp},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv", StorageClassName: full.Spec.StorageClassName},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	got := transform(t, transformOf(t, &corev1.PersistentVolumeClaim{}), full)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cached claim (-want +got):\n%s", diff)
	}
	if decideBind(newOurVolume(corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, func(v *corev1.PersistentVolume) { v.Name = "pv" }), got) != bindDone {
		t.Error("the binder can't tell from the cached claim that it is bound")
	}
}

func TestVolumesAreCachedByWhoseTheyAre(t *testing.T) {
	const (
		provisionedBy = "pv.kubernetes.io/provisioned-by"
		theirs        = "theirs.example.com"
		ours          = "ours.example.com"
	)
	for name, tt := range map[string]struct {
		phase corev1.PersistentVolumePhase
		by    string
		slim  bool
	}{
		"ours, bound, whole":              {corev1.VolumeBound, ours, false},
		"ours, released, whole":           {corev1.VolumeReleased, ours, false},
		"another's, bound, slim":          {corev1.VolumeBound, theirs, true},
		"another's, released, slim":       {corev1.VolumeReleased, theirs, true},
		"another's, failed, slim":         {corev1.VolumeFailed, theirs, true},
		"static, bound, slim":             {corev1.VolumeBound, "", true},
		"static, available, to be chosen": {corev1.VolumeAvailable, "", false},
		"another's, pending, whole":       {corev1.VolumePending, theirs, false},
		"without a phase yet, whole":      {"", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			full := newOurVolume(tt.phase, corev1.PersistentVolumeReclaimDelete, func(v *corev1.PersistentVolume) {
				v.Annotations = map[string]string{provisionedBy: tt.by}
				v.Labels = map[string]string{"disk": "ssd"}
				v.ResourceVersion = "7"
				exists := corev1.HostPathDirectory
				v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/theirs", Type: &exists}}
				v.Spec.NodeAffinity = onHost("a")
				v.Spec.Capacity, v.Spec.StorageClassName = sized("1Gi"), "fast"
			})
			want := full.DeepCopy()
			if tt.slim {
				want.Labels, want.Annotations = nil, nil
				if tt.by != "" {
					want.Annotations = map[string]string{provisionedBy: tt.by}
				}
				want.Spec = corev1.PersistentVolumeSpec{ClaimRef: full.Spec.ClaimRef, NodeAffinity: full.Spec.NodeAffinity}
				want.Spec.HostPath = &corev1.HostPathVolumeSource{Path: "/srv/theirs"}
			}
			full.ManagedFields = bulky
			full.Annotations[lastApplied] = "{}"
			got := transform(t, transformOf(t, &corev1.PersistentVolume{}), full)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("cached volume (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTransformsPassTombstones(t *testing.T) {
	tombstone := toolscache.DeletedFinalStateUnknown{Key: "ns/data"}
	for _, o := range []client.Object{&corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}} {
		if got, err := transformOf(t, o)(tombstone); err != nil || got != any(tombstone) {
			t.Errorf("transform of %T turned a tombstone into %v, %v", o, got, err)
		}
	}
}

func TestIndexKeys(t *testing.T) {
	for name, tt := range map[string]struct {
		got, want []string
	}{
		"an unbound claim, by its class":          {unboundClassKeys(newClaim()), []string{"fast"}},
		"the legacy annotation names the class":   {unboundClassKeys(newClaim(annotated(legacyClassKey, "slow"))), []string{"slow"}},
		"a claim without a class, under no name":  {unboundClassKeys(newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })), []string{""}},
		"a claim that wants no class, not at all": {unboundClassKeys(newClaim(annotated(legacyClassKey, ""))), nil},
		"a bound claim, not at all":               {unboundClassKeys(newClaim(boundTo("pv"))), nil},
		"a claim being deleted, not at all":       {unboundClassKeys(newClaim(claimDeleting)), nil},
		"an Available volume, by its class":       {availableClassKeys(newStaticVolume()), []string{"fast"}},
		"any other volume, not at all":            {availableClassKeys(newOurVolume(corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete)), nil},
		"a volume, by the claim it refers to":     {claimRefKeys(newOurVolume(corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete)), []string{"ns/data"}},
		"a volume that refers to none":            {claimRefKeys(newStaticVolume()), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.got); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
		})
	}
}
