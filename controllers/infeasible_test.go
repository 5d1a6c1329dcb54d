package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

func digest(t *testing.T, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) requestDigest {
	t.Helper()
	d, err := digestRequest(claim, class)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newVersionedClass returns class "fast" as the API server would.
func newVersionedClass() *storagev1.StorageClass {
	class := newClass("fast", 0)
	class.UID, class.ResourceVersion = "class-uid", "100"
	return class
}

func TestDigestIgnoresWhatChangesNothingForTheDriver(t *testing.T) {
	before := digest(t, newClaim(annotated("team", "a")), newVersionedClass())
	for name, edit := range map[string]claimEdit{
		"kube-controller-manager's trigger annotation": annotated("volume.kubernetes.io/storage-provisioner", "p"),
		"its beta form":        annotated("volume.beta.kubernetes.io/storage-provisioner", "p"),
		"the resource version": func(c *corev1.PersistentVolumeClaim) { c.ResourceVersion = "7" },
		"the status":           claimPhase(corev1.ClaimPending),
		"finalizers":           func(c *corev1.PersistentVolumeClaim) { c.Finalizers = []string{"kubernetes.io/pvc-protection"} },
	} {
		t.Run(name, func(t *testing.T) {
			if digest(t, newClaim(annotated("team", "a"), edit), newVersionedClass()) != before {
				t.Error("the digest changed: an infeasible claim would be tried again for nothing")
			}
		})
	}
}

func TestDigestChangesWithTheRequest(t *testing.T) {
	before := digest(t, newClaim(annotated("team", "a")), newVersionedClass())
	for name, tt := range map[string]struct {
		claim claimEdit
		class func(*storagev1.StorageClass)
	}{
		"an annotation is changed":  {claim: annotated("team", "b")},
		"an annotation is added":    {claim: annotated("another", "a")},
		"an annotation is removed":  {claim: func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, "team") }},
		"a node is selected":        {claim: annotated("volume.kubernetes.io/selected-node", "node-1")},
		"a label is added":          {claim: func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"team": "a"} }},
		"the size is changed":       {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized("2Gi") }},
		"the class name is changed": {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To("slow") }},
		"the claim is recreated":    {claim: func(c *corev1.PersistentVolumeClaim) { c.UID = "another" }},
		"the class is edited":       {class: func(c *storagev1.StorageClass) { c.ResourceVersion = "101" }},
		"the class is recreated":    {class: func(c *storagev1.StorageClass) { c.UID = "another" }},
		"a data source comes or goes": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "K"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			claim, class := newClaim(annotated("team", "a")), newVersionedClass()
			if tt.claim != nil {
				tt.claim(claim)
			}
			if tt.class != nil {
				tt.class(class)
			}
			if digest(t, claim, class) == before {
				t.Error("the digest did not change: the correction would not be tried")
			}
		})
	}
}

func TestInfeasibleClaimsWaitTheDelayOut(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	claims := newInfeasibleClaims(clock, time.Minute)
	key := types.NamespacedName{Namespace: "ns", Name: "data"}
	request := digest(t, newClaim(), newVersionedClass())

	if got := claims.Wait(key, request); got != 0 {
		t.Errorf("Wait = %s for a claim never seen, want 0", got)
	}
	if got := claims.Add(key, request); got != time.Minute {
		t.Errorf("Add = %s, want 1m", got)
	}
	clock.Step(20 * time.Second)
	if got := claims.Wait(key, request); got != 40*time.Second {
		t.Errorf("Wait = %s after 20 s of 60, want 40s", got)
	}
	clock.Step(time.Hour)
	if got := claims.Wait(key, request); got != 0 {
		t.Errorf("Wait = %s when the delay is over, want 0", got)
	}
}

func TestInfeasibleClaimIsTriedAtOnceWhenTheRequestChanges(t *testing.T) {
	claims := newInfeasibleClaims(clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)), time.Minute)
	key := types.NamespacedName{Namespace: "ns", Name: "data"}
	claims.Add(key, digest(t, newClaim(), newVersionedClass()))
	corrected := digest(t, newClaim(annotated("team", "b")), newVersionedClass())
	if got := claims.Wait(key, corrected); got != 0 {
		t.Errorf("Wait = %s for a request that has not failed, want 0", got)
	}
	if got := claims.Wait(types.NamespacedName{Namespace: "ns", Name: "other"}, corrected); got != 0 {
		t.Errorf("Wait = %s for another claim, want 0", got)
	}
}

func TestForgottenClaimsLeaveNothing(t *testing.T) {
	claims := newInfeasibleClaims(clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)), time.Minute)
	key := types.NamespacedName{Namespace: "ns", Name: "data"}
	claims.Add(key, requestDigest{})
	claims.Forget(key)
	if len(claims.claims) != 0 {
		t.Errorf("%d claims are remembered: a leak", len(claims.claims))
	}
}
