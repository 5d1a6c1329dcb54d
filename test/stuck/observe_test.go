package stuck_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/test/controlplane"
)

// replica is a controller whose probes and metrics are served.
type replica struct {
	*process
	probes, metrics string
}

func (s *site) replica() *replica {
	s.t.Helper()
	r := &replica{probes: freeAddress(s.t, loopback), metrics: freeAddress(s.t, loopback)}
	r.process = s.launch(s.controllerArgs("--health-probe-bind-address="+r.probes, "--metrics-bind-address="+r.metrics, "--metrics-secure=true")...)
	return r
}

// fetch returns the status and the body of an answer, 0 when there is none.
func (s *site) fetch(client *http.Client, url, token string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, http.NoBody)
	s.ok(err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}

func (s *site) probe(address string) func() string {
	return func() string {
		_, body := s.fetch(http.DefaultClient, "http://"+address+"/readyz?verbose", "")
		return body
	}
}

// token returns one of a new service account.
func (s *site) token(name string) string {
	s.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name}}
	s.create(account)
	request := &authenticationv1.TokenRequest{}
	s.ok(s.client.SubResource("token").Create(s.t.Context(), account, request))
	return request.Status.Token
}

// TestProbesTellTheTruth: who leads, who waits, how many agents there are; and an
// agent that is down makes nobody fail.
func TestProbesTellTheTruth(t *testing.T) {
	s := newSite(t)
	s.node("node-1")
	s.node("node-2")
	first := s.replica()
	s.Eventually(s.probe(first.probes)).Should(gomega.ContainSubstring("[+]leader: leader\n"))
	second := s.replica()
	s.Eventually(s.probe(second.probes)).Should(gomega.Equal(
		"[+]caches: synced\n[+]leader: standby\n[+]agents: 0 of 0 reachable (0 not ready, 0 do not answer)\nok\n"))
	s.newAgent("node-1", "default")
	two := s.newAgent("node-2", "default")
	n := s.tenant("probes")
	n.class()
	n.expectBound(n.claim(called("one"), onNode("node-1")))
	n.expectBound(n.claim(called("two"), onNode("node-2")))
	s.Eventually(s.probe(first.probes)).Should(gomega.ContainSubstring("[+]agents: 2 of 2 reachable"))
	two.kill()
	n.claim(onNode("node-2"))
	s.Eventually(s.probe(first.probes)).Should(gomega.ContainSubstring("[+]agents: 1 of 2 reachable (0 not ready, 1 do not answer)\nok\n"))
}

// TestStandbyIsWarm: a replica that takes over reads nothing anew.
func TestStandbyIsWarm(t *testing.T) {
	s := newSite(t)
	s.node("node-1")
	first := s.replica()
	s.Eventually(s.probe(first.probes)).Should(gomega.ContainSubstring("[+]leader: leader\n"))
	s.newAgent("node-1", "default")
	n := s.tenant("warm")
	n.class()
	n.expectBound(n.claim(called("before"), onNode("node-1")))
	second := s.replica()
	s.Eventually(s.probe(second.probes)).Should(gomega.ContainSubstring("[+]caches: synced\n[+]leader: standby\n"))

	first.stop()
	read := len(s.lists())
	n.expectBound(n.claim(onNode("node-1")))
	s.Eventually(s.probe(second.probes)).Should(gomega.ContainSubstring("[+]leader: leader\n"))
	if anew := s.lists()[read:]; len(anew) > 0 {
		t.Errorf("the standby has read anew: %q", anew)
	}
}

// lists returns what berth has listed, or began to watch, so far.
func (s *site) lists() []string {
	s.t.Helper()
	var all []string
	for event, err := range controlplane.ReadAudit(plane.AuditLogPath()) {
		s.ok(err)
		if event.User.Username == berthUser && (event.Verb == "list" || event.Verb == "watch") {
			all = append(all, event.Verb+" "+event.RequestURI)
		}
	}
	return all
}

// TestMetricsAreForWhomKubernetesLets reads the controller's with tokens, and an
// agent's with the certificate that the controller has issued for that. The
// controller has no rights but the generated ones.
func TestMetricsAreForWhomKubernetesLets(t *testing.T) {
	s := newSite(t)
	s.node("node-1")
	controller := s.replica()
	a := s.newAgent("node-1", "default")
	anybody := s.token("anybody")
	prometheus := s.token("prometheus")
	s.create(&rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "prometheus"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "berth-metrics-reader"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: home, Name: "prometheus"}},
	})
	selfSigned := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	url := "https://" + controller.metrics + "/metrics"
	for name, tt := range map[string]struct {
		url, token string
		code       int
	}{
		"who may":               {url, prometheus, http.StatusOK},
		"who may, once more":    {url, prometheus, http.StatusOK},
		"who may not":           {url, anybody, http.StatusForbidden},
		"who has no token":      {url, "", http.StatusUnauthorized},
		"who makes one up":      {url, "abc.def.ghi", http.StatusUnauthorized},
		"who may, another path": {"https://" + controller.metrics + "/debug", prometheus, http.StatusNotFound},
	} {
		s.Eventually(func() int { code, _ := s.fetch(selfSigned, tt.url, tt.token); return code }).Should(gomega.Equal(tt.code), name)
		if _, body := s.fetch(selfSigned, tt.url, tt.token); strings.Contains(body, "berth_") != (tt.code == http.StatusOK) {
			t.Errorf("%s is shown %.100s", name, body)
		}
	}
	if _, body := s.fetch(selfSigned, "http://"+controller.metrics+"/metrics", prometheus); strings.Contains(body, "berth_") {
		t.Error("metrics are sent unencrypted")
	}
	if output := controller.said(); strings.Contains(output, "forbidden") {
		t.Error("the controller asked for something that it has no right to")
	}

	certificates := s.mount("berth-metrics-tls")
	pair, err := tls.LoadX509KeyPair(filepath.Join(certificates, agenttls.CertificateFile), filepath.Join(certificates, agenttls.KeyFile))
	s.ok(err)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: "berth-metrics-tls"}}
	s.get(secret)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(secret.Data[agenttls.AuthoritiesFile])
	certified := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: agenttls.AgentName, Certificates: []tls.Certificate{pair},
	}}}
	s.Eventually(func() string { _, body := s.fetch(certified, "https://"+a.metrics+"/metrics", ""); return body }).
		Should(gomega.ContainSubstring("berth_pool_directory_usable"))
	if code, _ := s.fetch(selfSigned, "https://"+a.metrics+"/metrics", prometheus); code != 0 {
		t.Errorf("an agent answers who has no certificate with status %d", code)
	}
}
