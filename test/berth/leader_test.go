package berth_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onsi/gomega"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/berth-storage/berth/test/controlplane"
)

func TestKilledLeaderIsReplaced(t *testing.T) {
	s := newSite(t)
	s.class(s.name)
	elected := []string{"--leader-elect=true", "--leader-elect-namespace=" + s.name}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "berth.storage"}}
	holder := func() string {
		if !s.get(lease) {
			return ""
		}
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}
	first := s.start("", elected...)
	s.Eventually(holder).ShouldNot(gomega.BeEmpty())
	leader := holder()
	second := s.start("", elected...)
	s.expectBound(s.claim("before"))
	s.Consistently(holder, time.Second).Should(gomega.Equal(leader), "the second waits its turn")

	first.kill() // for good, as when its node is lost
	killed := time.Now()
	after := s.claim("after")
	s.expectBound(after)
	took := time.Since(killed)
	t.Logf("from the leader's kill -9 to a new claim's bind by the other replica: %.1f s", took.Seconds())
	// A replica looks at the Lease every 1 to 2.2 s, and counts from when it saw
	// the last renewal.
	s.Expect(took).To(gomega.BeNumerically("<", 25*time.Second), "the Lease lasts 15 s")
	s.Expect(holder()).NotTo(gomega.Equal(leader))
	s.Expect(s.inventory()).To(gomega.Equal(inventory{volumes: 2, directories: 2, markers: 2}))
	s.delete(after)
	s.delete(s.newClaim("before", s.name))
	s.expectNothingLeft()
	second.stop()
	s.Expect(holder()).To(gomega.BeEmpty(), "a leader that ends in order gives up its lease")
}

func TestRestartWithBoundClaimsWritesNothing(t *testing.T) {
	s := newSite(t)
	s.class(s.name)
	first := s.start("")
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		s.expectBound(s.claim(name))
	}
	first.stop()
	before := len(s.writes())
	s.start("", swept...)
	another := s.claim("another")
	s.expectBound(another) // by now berth has looked at all there is
	s.Consistently(func() []write {
		return slices.DeleteFunc(s.writes()[before:], func(w write) bool {
			return w.object == "pvc-"+string(another.UID) || w.object == another.Name || strings.HasPrefix(w.object, another.Name+".") // its events
		})
	}, 3*time.Second).Should(gomega.BeEmpty())
}

// write is a request of berth's that the audit log holds.
type write struct{ verb, resource, object string }

// writes returns what berth wrote so far.
func (s *site) writes() []write {
	s.t.Helper()
	var all []write
	for event, err := range controlplane.ReadAudit(plane.AuditLogPath()) {
		s.ok(err)
		if event.User.Username == berthUser && event.ObjectRef != nil {
			all = append(all, write{event.Verb, event.ObjectRef.Resource, event.ObjectRef.Name})
		}
	}
	return all
}
