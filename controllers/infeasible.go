package controllers

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/clock"
)

// infeasibleClaims remembers which claims can't be provisioned as they and
// their classes are now, so that they are tried again slowly, or at once when
// either changes. A restart forgets it, which costs one attempt a claim.
type infeasibleClaims struct {
	clock clock.PassiveClock
	delay time.Duration

	mu     sync.Mutex
	claims map[types.NamespacedName]infeasibleClaim
}

type infeasibleClaim struct {
	request requestDigest
	retryAt time.Time
}

func newInfeasibleClaims(c clock.PassiveClock, delay time.Duration) *infeasibleClaims {
	return &infeasibleClaims{clock: c, delay: delay, claims: map[types.NamespacedName]infeasibleClaim{}}
}

// Wait returns how long to leave the claim alone; 0 when it may be tried now.
func (i *infeasibleClaims) Wait(claim types.NamespacedName, request requestDigest) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.claims[claim]
	if !ok || known.request != request {
		return 0
	}
	return max(0, known.retryAt.Sub(i.clock.Now()))
}

// Add records that the claim's request is infeasible, and returns after how
// long it is worth another try.
func (i *infeasibleClaims) Add(claim types.NamespacedName, request requestDigest) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.claims[claim] = infeasibleClaim{request: request, retryAt: i.clock.Now().Add(i.delay)}
	return i.delay
}

// Forget drops what is known of the claim.
func (i *infeasibleClaims) Forget(claim types.NamespacedName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.claims, claim)
}

// requestDigest stands for everything in a claim and its class that a driver
// may decide by.
type requestDigest [sha256.Size]byte

// digestRequest leaves out the annotations that kube-controller-manager adds
// to a waiting claim, which change nothing about the request.
func digestRequest(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (requestDigest, error) {
	annotations := map[string]string{}
	for key, value := range claim.Annotations {
		switch key {
		case volumehelpers.AnnStorageProvisioner, volumehelpers.AnnBetaStorageProvisioner:
		default:
			annotations[key] = value
		}
	}
	text, err := json.Marshal(struct {
		ClaimUID, ClassUID types.UID
		ClassVersion       string
		Spec               corev1.PersistentVolumeClaimSpec
		Labels             map[string]string
		Annotations        map[string]string
	}{claim.UID, class.UID, class.ResourceVersion, claim.Spec, claim.Labels, annotations})
	if err != nil {
		return requestDigest{}, fmt.Errorf("digest claim: %w", err)
	}
	return sha256.Sum256(text), nil
}
