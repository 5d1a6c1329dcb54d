package berth_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner/hostpath"
)

func TestTwoThousandClaims(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes about a minute")
	}
	const claims = 2000
	s := newSite(t)
	s.class(s.name)
	s.start("")

	start := time.Now()
	s.all(claims, func(i int) error {
		return s.client.Create(t.Context(), s.newClaim(fmt.Sprintf("data-%d", i), s.name))
	})
	created := time.Since(start)
	s.Eventually(s.phases, 5*time.Minute, time.Second).Should(gomega.Equal(map[corev1.PersistentVolumeClaimPhase]int{corev1.ClaimBound: claims}))
	t.Logf("%d claims created after %s, all Bound after %s", claims, created, time.Since(start))

	s.Expect(s.inventory()).To(gomega.Equal(inventory{volumes: claims, directories: claims, markers: claims}))
	var volumes corev1.PersistentVolumeList
	s.ok(s.client.List(t.Context(), &volumes))
	paths, owners := map[string]bool{}, map[string]bool{}
	for _, v := range volumes.Items {
		if v.Annotations[hostpath.AnnNode] != s.name {
			continue
		}
		paths[v.Spec.Local.Path] = true
		owners[string(v.Spec.ClaimRef.UID)] = true
		if v.Status.Phase != corev1.VolumeBound {
			t.Errorf("volume %s is %s", v.Name, v.Status.Phase)
		}
	}
	if len(paths) != claims || len(owners) != claims {
		t.Errorf("%d directories and %d claims for %d volumes", len(paths), len(owners), claims)
	}

	start = time.Now()
	s.all(claims, func(i int) error {
		return s.client.Delete(t.Context(), s.newClaim(fmt.Sprintf("data-%d", i), s.name))
	})
	s.Eventually(s.inventory, 5*time.Minute, time.Second).Should(gomega.Equal(inventory{}))
	t.Logf("all gone %s after the first was deleted", time.Since(start))
}

// all calls f for 0 to n-1, some at a time.
func (s *site) all(n int, f func(int) error) {
	s.t.Helper()
	var group errgroup.Group
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return f(i) })
	}
	s.ok(group.Wait())
}

// phases counts the site's claims by phase.
func (s *site) phases() map[corev1.PersistentVolumeClaimPhase]int {
	s.t.Helper()
	var list corev1.PersistentVolumeClaimList
	s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(s.name)))
	counts := map[corev1.PersistentVolumeClaimPhase]int{}
	for _, c := range list.Items {
		counts[c.Status.Phase]++
	}
	return counts
}
