package controllers_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/test/controlplane"
)

const roleFile = "../config/rbac/role.yaml"

// TestGeneratedRolesSuffice lives a volume's whole life with no rights but the
// generated ones. It is not parallel, since it makes a default class.
func TestGeneratedRolesSuffice(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.grantGeneratedRoles(minimalUser)
	cp := sharedControlPlane(t)
	config, err := cp.User(minimalUser)
	s.ok(err)
	s.run(driver, func(o *berthOptions) { o.config = config })
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

	for event, err := range controlplane.ReadAudit(cp.AuditLogPath()) {
		s.ok(err)
		if event.User.Username == minimalUser && event.ResponseStatus != nil && event.ResponseStatus.Code == 403 {
			t.Errorf("forbidden: %s %s", event.Verb, event.RequestURI)
		}
	}
}

// grantGeneratedRoles binds user to the ClusterRoles of roleFile, and to nothing
// else. What a Role grants in Berth's own namespace, leader election, is not
// needed here.
func (s *scope) grantGeneratedRoles(user string) {
	s.t.Helper()
	text, err := os.ReadFile(roleFile)
	s.ok(err)
	granted := 0
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		role := &rbacv1.ClusterRole{}
		err := documents.Decode(role)
		if errors.Is(err, io.EOF) {
			break
		}
		s.ok(err)
		if role.Kind != "ClusterRole" {
			continue
		}
		granted++
		role.ObjectMeta = metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", s.name, granted)}
		s.create(role)
		s.create(&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		})
	}
	if granted == 0 {
		s.t.Fatalf("%s holds no ClusterRole", roleFile)
	}
}
