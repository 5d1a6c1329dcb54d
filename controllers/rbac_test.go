package controllers_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	roleFile = "../config/rbac/role.yaml"
	// driverOfRoles is the driver whose object the roles name.
	driverOfRoles = "hostpath.berth.storage"
)

// TestGeneratedRolesSuffice lives a volume's whole life with no rights but the
// generated ones. It is not parallel, since it makes a default class.
func TestGeneratedRolesSuffice(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.grantGeneratedRoles(minimalUser)
	cp := sharedControlPlane(t)
	config, err := cp.User(minimalUser)
	s.ok(err)
	s.run(driver, func(o *berthOptions) { o.config = config }, impatient)
	class := s.class(waitForConsumer, growing, func(c *storagev1.StorageClass) { c.Annotations[defaultClassKey] = "true" })

	// Reschedule, provision, bind, expand, protect and unprotect, reclaim.
	driver.FailProvision(libcontroller.ProvisioningReschedule, errors.New("no room"))
	claim := s.claim("data", annotate(selectedNodeKey, "full"))
	s.Eventually(func() map[string]string { s.get(claim); return claim.Annotations }).ShouldNot(gomega.HaveKey(selectedNodeKey))
	s.expectEvent(claim, "Warning ProvisioningFailed", "no room")
	driver.OnProvision(nil)
	patch(s, claim, annotate(selectedNodeKey, "roomy"))
	volume := s.expectBound(claim)
	patch(s, claim, ask("2Gi"))
	s.Eventually(func() [2]string { return s.sizes(claim) }).Should(gomega.Equal([2]string{"2Gi", "2Gi"}))
	finalizers := func() []string { s.get(volume); return volume.Finalizers }
	patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimRetain))
	s.Eventually(finalizers).ShouldNot(gomega.ContainElement(deletionFinalizer))
	patch(s, volume, setPolicy(corev1.PersistentVolumeReclaimDelete))
	s.Eventually(finalizers).Should(gomega.ContainElement(deletionFinalizer))
	s.delete(claim)
	s.expectGone(volume)

	// Everything kube-controller-manager does not do in time.
	withoutControllerManager(t)
	unnamed := s.claim("unnamed", annotate(selectedNodeKey, "roomy"), func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	s.expectBound(unnamed)
	s.Expect(*unnamed.Spec.StorageClassName).To(gomega.Equal(class.Name))

	expectNothingForbidden(t)
}

// TestGeneratedRolesSufficeForNodes publishes capacity, takes it back, and loses
// a node, with no rights but the generated ones.
func TestGeneratedRolesSufficeForNodes(t *testing.T) {
	s := newScope(t)
	s.grantGeneratedRoles(minimalUser)
	config, err := sharedControlPlane(t).User(minimalUser)
	s.ok(err)
	asMinimalUser := func(o *berthOptions) { o.config = config }
	node := s.node("a")
	driver := newNodeDriver(map[string]int64{node: 10 * gib})
	class := s.class(waitForConsumer)

	b := s.run(driver, asMinimalUser, publish(rarely), lostAfter(2*time.Second))
	s.expectScheduling()
	claim, volume := s.boundOn(node, "data")
	s.Eventually(s.room).Should(gomega.Equal(map[string]int64{hostnameOf(node): 9 * gib}))
	s.delete(namedNode(node))
	s.Eventually(s.room).Should(gomega.BeEmpty())
	s.Eventually(lostSince(s, volume)).ShouldNot(gomega.BeEmpty())
	s.node("a")
	s.Eventually(lostSince(s, volume)).Should(gomega.BeEmpty())
	s.Eventually(s.room).Should(gomega.HaveLen(1))
	s.delete(namedNode(node))
	s.expectEvent(claim, "Warning NodeLost", node)
	s.delete(claim)
	s.expectGone(volume)
	s.delete(class)
	b.stop()

	s.run(driver, asMinimalUser, unpublish)
	s.expectGone(s.csiDriver())
	expectNothingForbidden(t)
}

// expectNothingForbidden fails when minimalUser was refused anything so far.
func expectNothingForbidden(t *testing.T) {
	t.Helper()
	for event, err := range controlplane.ReadAudit(sharedControlPlane(t).AuditLogPath()) {
		if err != nil {
			t.Fatal(err)
		}
		if event.User.Username == minimalUser && event.ResponseStatus != nil && event.ResponseStatus.Code == 403 {
			t.Errorf("forbidden: %s %s", event.Verb, event.RequestURI)
		}
	}
}

// grantGeneratedRoles binds user to the roles of roleFile, and to nothing else.
// The scope's namespace and driver stand in for Berth's.
func (s *scope) grantGeneratedRoles(user string) {
	s.t.Helper()
	text, err := os.ReadFile(roleFile)
	s.ok(err)
	granted := 0
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}}
	for {
		role := &rbacv1.ClusterRole{} // a Role has the same rules
		err := documents.Decode(role)
		if errors.Is(err, io.EOF) {
			break
		}
		s.ok(err)
		for i := range role.Rules {
			if slices.Contains(role.Rules[i].ResourceNames, driverOfRoles) {
				role.Rules[i].ResourceNames = []string{s.driverName()}
			}
		}
		granted++
		meta := metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", s.name, granted)}
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: role.Kind, Name: meta.Name}
		if role.Kind == "Role" {
			meta.Namespace = s.name
			s.create(&rbacv1.Role{ObjectMeta: meta, Rules: role.Rules})
			s.create(&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
			continue
		}
		s.create(&rbacv1.ClusterRole{ObjectMeta: meta, Rules: role.Rules})
		s.create(&rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects})
	}
	if granted == 0 {
		s.t.Fatalf("%s holds no roles", roleFile)
	}
}
