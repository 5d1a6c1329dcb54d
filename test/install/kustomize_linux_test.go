package install

import (
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

// TestKustomize does with config/default what TestHelm does with the chart.
func TestKustomize(t *testing.T) {
	u := newUser(t, "kustomize-user")
	config := filepath.Join(u.root, "config", "default")
	began := time.Now()
	u.kubectl("apply", "-k", config)
	u.apply(claim("first", "berth-hostpath") + writer("first"))
	v := u.expectBound("first")
	took := time.Since(began)
	t.Logf("from nothing to the first Bound claim: %.1f s", took.Seconds())
	u.Expect(took).To(BeNumerically("<", time.Minute))
	u.rollout()
	u.expectWriting("first", v)

	before := u.certificates()
	u.kubectl("apply", "-k", config)
	u.Expect(u.certificates()).To(Equal(before), "certificates after another apply")
	u.kubectl("--namespace="+namespace, "rollout", "restart", "daemonset/berth-agent", "deployment/berth-controller")
	u.rollout()
	u.expectWriting("first", v)

	returned := withoutBerth(func() { u.kubectl("delete", "-k", config, "--timeout=90s") })
	u.expectNothingOfBerth("app.kubernetes.io/name=berth")
	u.expectWriting("first", v)

	returned()
	u.kubectl("apply", "-k", config)
	u.rollout()
	u.kubectl("delete", "namespace", u.name)
	u.expectGone(v)
}
