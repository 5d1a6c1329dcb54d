package agentca

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	// home is the namespace that the generated Role is for.
	home        = "berth-system"
	minimalUser = "berth-with-minimal-rights"
	roleFile    = "../../config/rbac/role.yaml"
)

var names = Secrets{Namespace: home, Authority: "berth-ca", Agent: "berth-agent-tls", Controller: "berth-controller-tls"}

// cluster is a real API server with the three Secrets, empty, and a user who may
// do what the generated Role allows.
type cluster struct {
	t       *testing.T
	admin   client.Client
	minimal client.Client
	clock   *clocktesting.FakeClock
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	log.SetLogger(logr.Discard())
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Output: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, clock: clocktesting.NewFakeClock(epoch)}
	c.admin, err = client.New(plane.Config(), client.Options{})
	c.ok(err)
	config, err := plane.User(minimalUser)
	c.ok(err)
	c.minimal, err = client.New(config, client.Options{})
	c.ok(err)
	c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home}})
	role := c.role()
	c.create(role)
	c.create(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: minimalUser}},
	})
	return c
}

// role reads the generated Role.
func (c *cluster) role() *rbacv1.Role {
	c.t.Helper()
	text, err := os.ReadFile(roleFile)
	c.ok(err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		role := &rbacv1.Role{}
		c.ok(yaml.Unmarshal([]byte(document), role))
		if role.Kind == "Role" && role.Namespace == home {
			return role
		}
	}
	c.t.Fatalf("%s holds no Role for %s", roleFile, home)
	return nil
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) create(o client.Object) {
	c.t.Helper()
	c.ok(c.admin.Create(c.t.Context(), o))
}

// empty makes the three Secrets anew, and sets the clock back.
func (c *cluster) empty() {
	c.t.Helper()
	c.clock.SetTime(epoch)
	for _, name := range []string{names.Authority, names.Agent, names.Controller} {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}}
		c.ok(client.IgnoreNotFound(c.admin.Delete(c.t.Context(), secret)))
		secret.ResourceVersion = ""
		c.create(secret)
	}
}

func (c *cluster) issuer() *Issuer {
	return &Issuer{Reader: c.minimal, Writer: c.minimal, Secrets: names, Policy: DefaultPolicy, Clock: c.clock}
}

func (c *cluster) secret(name string) *corev1.Secret {
	c.t.Helper()
	secret := &corev1.Secret{}
	c.ok(c.admin.Get(c.t.Context(), client.ObjectKey{Namespace: home, Name: name}, secret))
	return secret
}

func (c *cluster) versions() []string {
	return []string{c.secret(names.Authority).ResourceVersion, c.secret(names.Agent).ResourceVersion, c.secret(names.Controller).ResourceVersion}
}

// accept fails the test unless what the Secrets say makes both sides accept each
// other.
func (c *cluster) accept() {
	c.t.Helper()
	agent, controller := c.secret(names.Agent), c.secret(names.Controller)
	w := &world{
		t: c.t, now: c.clock.Now(),
		onNodes:  leafSecret{agent.Data, agent.Annotations},
		inMemory: leafSecret{controller.Data, controller.Annotations},
	}
	w.accept()
}

// TestIssuer shares one API server among its parts.
func TestIssuer(t *testing.T) {
	c := newCluster(t)
	for name, test := range map[string]func(*testing.T, *cluster){
		"secrets are filled once":                    testFilledOnce,
		"it may read and write no other secrets":     testNoOtherSecrets,
		"it may die at any write":                    testDiesAnywhere,
		"two of them agree":                          testTwoAgree,
		"a secret that is missing is named":          testMissing,
		"it renews while it runs, and says when":     testRuns,
		"who reads metrics has a certificate too":    testMetrics,
		"a secret that somebody empties is refilled": testRefilled,
	} {
		t.Run(name, func(t *testing.T) {
			part := *c
			part.t = t
			part.empty()
			test(t, &part)
		})
	}
}

func testFilledOnce(t *testing.T, c *cluster) {
	i := c.issuer()
	if _, err := i.Identity(); err == nil {
		t.Error("an identity before any was issued")
	}
	c.ok(i.round(t.Context()))
	c.accept()
	identity, err := i.Identity()
	c.ok(err)
	if !slices.Equal(identity.Certificate.Leaf.DNSNames, []string{"controller.berth.storage"}) {
		t.Errorf("names %v", identity.Certificate.Leaf.DNSNames)
	}
	before := c.versions()
	for range 10 {
		c.clock.Step(interval)
		c.ok(i.round(t.Context()))
		c.ok(c.issuer().round(t.Context())) // a replica that takes over
	}
	if after := c.versions(); !slices.Equal(before, after) {
		t.Errorf("versions %v became %v", before, after)
	}
}

func testNoOtherSecrets(t *testing.T, c *cluster) {
	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: "other"}}
	c.create(other)
	if err := c.minimal.Get(t.Context(), client.ObjectKeyFromObject(other), other); !apierrors.IsForbidden(err) {
		t.Errorf("get: %v", err)
	}
	if err := c.minimal.List(t.Context(), &corev1.SecretList{}, client.InNamespace(home)); !apierrors.IsForbidden(err) {
		t.Errorf("list: %v", err)
	}
	if err := c.minimal.Delete(t.Context(), c.secret(names.Agent)); !apierrors.IsForbidden(err) {
		t.Errorf("delete: %v", err)
	}
}

var errDied = errors.New("the process is gone")

// mortal dies at its nth write: before it, or when the API server has done it.
type mortal struct {
	client.Writer
	at     int
	before bool
}

func (m *mortal) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	m.at--
	if m.at < 0 || m.at == 0 && m.before {
		return errDied
	}
	err := m.Writer.Update(ctx, o, opts...)
	if m.at == 0 {
		return errors.Join(errDied, err)
	}
	return err
}

// testDiesAnywhere goes through the first issue and a change of the authority. In
// each of their moments a controller dies at each of its writes.
func testDiesAnywhere(t *testing.T, c *cluster) {
	due := (DefaultPolicy.AuthorityLife+backdate)*2/3 - backdate
	const day = 24 * time.Hour
	moments := []struct {
		name   string
		wait   time.Duration
		writes int
		// over says that what there was holds no more.
		over bool
	}{
		{"first issue", 0, 3, true},
		{"leaves that nobody renewed", due - 5*day, 2, true},
		{"the next authority", 5*day + time.Second, 3, false},
		{"it signs", DefaultPolicy.Overlap + time.Second, 3, false},
		{"the old one goes", DefaultPolicy.Overlap + time.Second, 3, false},
		{"renewal", DefaultPolicy.LeafLife * 3 / 4, 2, false},
	}
	for _, before := range []bool{true, false} {
		for at := 1; at <= 3; at++ {
			c.empty()
			for _, moment := range moments {
				c.clock.Step(moment.wait)
				dying := c.issuer()
				dying.Writer = &mortal{Writer: c.minimal, at: at, before: before}
				if err := dying.round(t.Context()); errors.Is(err, errDied) != (at <= moment.writes) {
					t.Fatalf("%s, write %d of %d: %v", moment.name, at, moment.writes, err)
				}
				if !moment.over {
					c.accept()
				}
				c.ok(c.issuer().round(t.Context()))
				c.accept()
				settled := c.versions()
				c.ok(c.issuer().round(t.Context()))
				if again := c.versions(); !slices.Equal(settled, again) {
					t.Errorf("%s, write %d: %v became %v without a cause", moment.name, at, settled, again)
				}
			}
		}
	}
}

func testTwoAgree(t *testing.T, c *cluster) {
	for n := range 20 {
		if n == 10 {
			c.clock.Step(DefaultPolicy.AuthorityLife)
		}
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				if err := c.issuer().round(t.Context()); err != nil && !apierrors.IsConflict(err) {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
	c.accept()
	settled := c.versions()
	c.ok(c.issuer().round(t.Context()))
	if again := c.versions(); !slices.Equal(settled, again) {
		t.Errorf("%v became %v", settled, again)
	}
}

func testMissing(t *testing.T, c *cluster) {
	c.ok(c.admin.Delete(t.Context(), c.secret(names.Controller)))
	i := c.issuer()
	if err := i.round(t.Context()); err == nil || !strings.Contains(err.Error(), "secret berth-system/berth-controller-tls is not there") {
		t.Errorf("error %v", err)
	}
	if _, err := i.Identity(); err == nil || !strings.Contains(err.Error(), "berth-controller-tls") {
		t.Errorf("identity: %v", err)
	}
}

func testRuns(t *testing.T, c *cluster) {
	g := gomega.NewWithT(t)
	i := c.issuer()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Start(ctx) }()
	end := func() time.Time {
		if leaf := i.Certificates()["agent"]; leaf != nil {
			return leaf.NotAfter
		}
		return time.Time{}
	}
	g.Eventually(end).Should(gomega.BeTemporally("~", epoch.Add(DefaultPolicy.LeafLife), time.Minute))
	g.Eventually(c.clock.HasWaiters).Should(gomega.BeTrue())
	c.clock.Step(DefaultPolicy.LeafLife * 3 / 4)
	g.Eventually(end).WithTimeout(10 * time.Second).Should(gomega.BeTemporally("~", epoch.Add(DefaultPolicy.LeafLife*7/4), time.Minute))
	cancel()
	c.ok(<-done)
}

func testRefilled(t *testing.T, c *cluster) {
	i := c.issuer()
	c.ok(i.round(t.Context()))
	emptied := c.secret(names.Agent)
	emptied.Data = nil
	c.ok(c.admin.Update(t.Context(), emptied))
	c.ok(i.round(t.Context()))
	c.accept()
}

func testMetrics(t *testing.T, c *cluster) {
	const name = "berth-metrics-tls"
	c.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}})
	i := c.issuer()
	i.Secrets.Metrics = name
	c.ok(i.round(t.Context()))
	c.accept()
	leaf, err := parseLeaf(metricsKind, c.secret(name).Data, nil)
	c.ok(err)
	if names := leaf.pair.certificate.DNSNames; !slices.Equal(names, []string{"metrics.berth.storage"}) {
		t.Errorf("names %v", names)
	}
	if shown := i.Certificates(); shown["metrics"] == nil || shown["controller"] == nil {
		t.Errorf("certificates %v", shown)
	}
	identity, err := i.Identity()
	c.ok(err)
	if names := identity.Certificate.Leaf.DNSNames; !slices.Equal(names, []string{"controller.berth.storage"}) {
		t.Errorf("the controller shows itself as %v", names)
	}
}
