package agentca

import (
	"crypto/x509"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/berth-storage/berth/internal/agenttls"
)

// arrival is how long it takes at most until a Secret is where it is mounted.
const arrival = 30 * time.Minute

var epoch = time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)

// world is what the Secrets say, and what both sides have taken from them.
type world struct {
	t      *testing.T
	policy Policy
	now    time.Time

	authority         map[string][]byte
	agent, controller leafSecret
	// onNodes is the agents' Secret as kubelet has brought it to them, from the
	// versions that are on their way.
	onNodes leafSecret
	onWay   []delivery
	// inMemory is the controller's Secret as the last controller has read it.
	inMemory leafSecret
	writes   int
}

type leafSecret struct {
	data        map[string][]byte
	annotations map[string]string
}

type delivery struct {
	leafSecret
	due time.Time
}

// round does what Issuer.look does, and dies before the write of that number; -1
// for a controller that lives. It reports whether anything was written.
func (w *world) round(dies int) (wrote bool) {
	w.t.Helper()
	have, problem := parseAuthority(w.authority)
	w.ok(problem)
	agent, problem := parseLeaf(agentKind, w.agent.data, w.agent.annotations)
	w.ok(problem)
	controller, problem := parseLeaf(controllerKind, w.controller.data, w.controller.annotations)
	w.ok(problem)
	authority, change, err := w.policy.decideAuthority(w.now, have, agent, controller)
	w.ok(err)
	step := 0
	write := func(change string, do func()) bool {
		if change == "" {
			return true
		}
		if step == dies {
			return false
		}
		step++
		do()
		w.writes++
		wrote = true
		return true
	}
	if !write(change, func() { w.authority = authority.data() }) {
		return wrote
	}
	wantAgent, change, err := w.policy.decideLeaf(w.now, authority, agent)
	w.ok(err)
	if !write(change, func() {
		w.agent = leafSecret{wantAgent.data(), wantAgent.annotations()}
		w.onWay = append(w.onWay, delivery{w.agent, w.now.Add(rand.N(arrival))})
	}) {
		return wrote
	}
	wantController, change, err := w.policy.decideLeaf(w.now, authority, controller)
	w.ok(err)
	if !write(change, func() { w.controller = leafSecret{wantController.data(), wantController.annotations()} }) {
		return wrote
	}
	w.inMemory = w.controller
	return wrote
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	for len(w.onWay) > 0 && !w.onWay[0].due.After(w.now) {
		w.onNodes, w.onWay = w.onWay[0].leafSecret, w.onWay[1:]
	}
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// accept fails the test unless controller and agents accept each other.
func (w *world) accept() {
	w.t.Helper()
	controller, agent := identityOf(w.t, w.inMemory), identityOf(w.t, w.onNodes)
	for _, side := range []struct {
		shown, trusts *agenttls.Identity
		kind          leafKind
	}{{agent, controller, agentKind}, {controller, agent, controllerKind}} {
		roots := x509.NewCertPool()
		for _, authority := range side.trusts.Authorities {
			roots.AddCert(authority)
		}
		_, err := side.shown.Certificate.Leaf.Verify(x509.VerifyOptions{
			Roots: roots, CurrentTime: w.now, DNSName: side.kind.name, KeyUsages: []x509.ExtKeyUsage{side.kind.usage},
		})
		if err != nil {
			w.t.Fatalf("at %s the certificate of the %s is refused: %v", w.now.Sub(epoch), side.kind.label, err)
		}
	}
}

func identityOf(t *testing.T, s leafSecret) *agenttls.Identity {
	t.Helper()
	identity, err := agenttls.Parse(s.data[agenttls.CertificateFile], s.data[agenttls.KeyFile], s.data[agenttls.AuthoritiesFile])
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// newWorld is one in which certificates have been issued and arrived.
func newWorld(t *testing.T) *world {
	w := &world{t: t, policy: DefaultPolicy, now: epoch}
	w.round(-1)
	w.pass(time.Hour)
	w.accept()
	return w
}

// TestControllerAndAgentsAcceptEachOtherAtEveryMoment lives through several
// authorities, with controllers that die at any write and come back at once or
// hours later, and agents that get their certificates late.
func TestControllerAndAgentsAcceptEachOtherAtEveryMoment(t *testing.T) {
	const life = 400 * 24 * time.Hour
	w := newWorld(t)
	w.policy.AuthorityLife, w.policy.LeafLife = 90*24*time.Hour, 15*24*time.Hour
	signers := map[string]bool{}
	for w.now.Sub(epoch) < life {
		dies := rand.N(6) - 3
		w.round(dies)
		for range 2 {
			w.accept()
			w.pass(rand.N(5 * time.Minute))
		}
		signers[string(identityOf(t, w.inMemory).Certificate.Leaf.RawIssuer)] = true
		if dies < 0 {
			w.pass(rand.N(12 * time.Hour))
		}
	}
	if len(signers) < 4 {
		t.Errorf("%d authorities have signed, want at least 4", len(signers))
	}
	if trusted := len(identityOf(t, w.onNodes).Authorities); trusted > 3 {
		t.Errorf("%d authorities are trusted", trusted)
	}
	// A leaf is used for 10 days, and an authority changes three times, of which
	// all three Secrets tell.
	if limit := 2*int(life/(10*24*time.Hour)) + 3*3*(len(signers)+1); w.writes > limit {
		t.Errorf("%d writes, want at most %d", w.writes, limit)
	}
}

func TestNothingIsWrittenUntilSomethingIsDue(t *testing.T) {
	w := newWorld(t)
	start := w.now
	for w.now.Sub(start) < 19*24*time.Hour {
		if w.round(-1) {
			t.Fatalf("written after %s", w.now.Sub(start))
		}
		w.pass(5 * time.Minute)
	}
}

func TestLeavesAreRenewedAtTwoThirdsOfTheirLife(t *testing.T) {
	w := newWorld(t)
	before := identityOf(t, w.agent).Certificate.Leaf
	life := before.NotAfter.Sub(before.NotBefore)
	w.now = before.NotBefore.Add(life*2/3 - time.Second)
	if w.round(-1) {
		t.Error("renewed early")
	}
	w.pass(2 * time.Second)
	w.round(-1)
	after := identityOf(t, w.agent).Certificate.Leaf
	if after.Equal(before) || !after.NotAfter.After(before.NotAfter) {
		t.Error("not renewed")
	}
}

// TestAnAuthorityThatEndsDoesNotMakeLeavesChurn: what it signs can't outlive it.
func TestAnAuthorityThatEndsDoesNotMakeLeavesChurn(t *testing.T) {
	w := newWorld(t)
	authority, _ := parseAuthority(w.authority)
	// Nobody looked after it until ten minutes before its end.
	w.now = authority.signing.certificate.NotAfter.Add(-10 * time.Minute)
	w.round(-1)
	for range 9 {
		w.pass(time.Minute)
		if w.round(-1) {
			t.Errorf("written %s before the end", authority.signing.certificate.NotAfter.Sub(w.now))
		}
	}
	w.pass(2 * time.Minute)
	w.round(-1)
	w.pass(arrival)
	w.accept()
}

// TestCertificatesComeBackAfterYears: everything is over when the controller
// is started again.
func TestCertificatesComeBackAfterYears(t *testing.T) {
	w := newWorld(t)
	w.pass(10 * 365 * 24 * time.Hour)
	w.round(-1)
	w.pass(arrival)
	w.accept()
	if trusted := len(identityOf(t, w.onNodes).Authorities); trusted != 1 {
		t.Errorf("%d authorities are trusted, want the new one", trusted)
	}
}

func TestTheKeyOfAnAuthorityIsInNoSecretButItsOwn(t *testing.T) {
	w := newWorld(t)
	for _, s := range []leafSecret{w.agent, w.controller} {
		if len(s.data) != 3 {
			t.Errorf("keys %v", s.data)
		}
		if string(s.data[agenttls.KeyFile]) == string(w.authority[agenttls.KeyFile]) {
			t.Error("the authority's key")
		}
	}
	if string(w.agent.data[agenttls.KeyFile]) == string(w.controller.data[agenttls.KeyFile]) {
		t.Error("agents and controller have the same key")
	}
}

func TestWhatIsInASecretThatCanNotBeUsedIsReplaced(t *testing.T) {
	other := newWorld(t)
	for name, spoil := range map[string]func(w *world){
		"the agents' is empty":                 func(w *world) { w.agent = leafSecret{} },
		"the controller's is empty":            func(w *world) { w.controller = leafSecret{} },
		"all are empty":                        func(w *world) { w.agent, w.controller, w.authority = leafSecret{}, leafSecret{}, nil },
		"the authority's is empty":             func(w *world) { w.authority = nil },
		"the agents' and controller's swapped": func(w *world) { w.agent, w.controller = w.controller, w.agent },
		"the agents' is of another authority":  func(w *world) { w.agent = other.agent },
		"the authority is another":             func(w *world) { w.authority = other.authority },
		"the annotation is gone":               func(w *world) { w.agent.annotations = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			spoil(w)
			if !w.round(-1) {
				t.Error("nothing was written")
			}
			w.pass(arrival)
			w.accept()
			if w.round(-1) {
				t.Error("written again")
			}
		})
	}
}

func TestDamagedSecretsAreSaidToBeDamaged(t *testing.T) {
	w := newWorld(t)
	w.authority[agenttls.KeyFile] = w.agent.data[agenttls.KeyFile]
	if a, problem := parseAuthority(w.authority); problem == nil || a.signing != nil {
		t.Errorf("an authority with another's key: %v", problem)
	}
	w.agent.data[agenttls.CertificateFile] = []byte("not PEM")
	if l, problem := parseLeaf(agentKind, w.agent.data, nil); problem == nil || l.pair != nil {
		t.Errorf("a certificate that is none: %v", problem)
	}
}
