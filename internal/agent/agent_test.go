package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr/funcr"
	"github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/internal/agent"
	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// site is an agent that runs, and what it needs.
type site struct {
	*gomega.WithT
	t               *testing.T
	authority       *tlstest.Authority
	certificates    string // the folder
	address, probes string
	metrics         string

	stop func() error

	mu    sync.Mutex
	lines []map[string]any // of the log
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{WithT: gomega.NewWithT(t), t: t, certificates: t.TempDir(), probes: freeAddress(t), metrics: freeAddress(t)}
	var err error
	s.authority, err = tlstest.NewAuthority()
	s.ok(err)
	base := t.TempDir()
	s.ok(os.Mkdir(filepath.Join(base, ".berth"), 0o700))
	log := funcr.NewJSON(func(line string) {
		fields := map[string]any{}
		s.mu.Lock()
		defer s.mu.Unlock()
		if json.Unmarshal([]byte(line), &fields) == nil {
			s.lines = append(s.lines, fields)
		}
	}, funcr.Options{})
	server, err := node.New(node.Options{NodeName: "n1", Pools: map[string][]string{"default": {base}}, Log: log})
	s.ok(err)
	listening := make(chan net.Addr, 1)
	a, err := agent.New(agent.Options{
		Node: server, Certificate: agenttls.NewFiles(s.file(agenttls.CertificateFile), s.file(agenttls.KeyFile), s.file(agenttls.AuthoritiesFile), log),
		Listen: "127.0.0.1:0", Metrics: s.metrics, Probes: s.probes, Registry: prometheus.NewRegistry(), Log: log,
		Listening: func(address net.Addr) { listening <- address },
	})
	s.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { s.ok(s.stop()) })
	s.address = (<-listening).String()
	return s
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func (s *site) file(name string) string { return filepath.Join(s.certificates, name) }

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// certify gives the agent a certificate.
func (s *site) certify() {
	s.t.Helper()
	s.ok(s.authority.Write(s.certificates, tlstest.Agent))
	s.Eventually(func() int { code, _ := s.get(s.probes, "/readyz"); return code }).WithTimeout(20 * time.Second).Should(gomega.Equal(http.StatusOK))
}

// get asks the server for probes.
func (s *site) get(address, path string) (code int, body string) {
	s.t.Helper()
	return s.ask(http.DefaultClient, "http://"+address+path)
}

// scrape reads the metrics, as somebody with a certificate of authority.
func (s *site) scrape(authority *tlstest.Authority, kind func(*x509.Certificate)) (code int, body string) {
	s.t.Helper()
	certificate, key, err := authority.Sign(kind)
	s.ok(err)
	pair, err := tls.X509KeyPair(certificate, key)
	s.ok(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.authority.PEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: agenttls.AgentName, MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}}
	defer transport.CloseIdleConnections()
	return s.ask(&http.Client{Transport: transport}, "https://"+s.metrics+"/metrics")
}

func (s *site) ask(client *http.Client, url string) (code int, body string) {
	s.t.Helper()
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	s.ok(err)
	return response.StatusCode, string(text)
}

// controller connects as the controller.
func (s *site) controller() csi.ControllerClient {
	s.t.Helper()
	source, err := s.authority.Source(s.authority, tlstest.Controller)
	s.ok(err)
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(agenttls.ClientCredentials(source)))
	s.ok(err)
	s.t.Cleanup(func() { s.ok(conn.Close()) })
	return csi.NewControllerClient(conn)
}

// to says which node a call is meant for.
func to(ctx context.Context, node string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, wire.MetaNode, node)
}

func create(name string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
		Parameters: map[string]string{wire.ParamPool: "default", wire.ParamClaimUID: "u", wire.ParamClaimNamespace: "ns", wire.ParamClaimName: "data"},
	}
}

// logged returns the lines of the log with that message.
func (s *site) logged(message string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []map[string]any
	for _, line := range s.lines {
		if line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}

func TestAnAgentIsReadyOnceItHasACertificate(t *testing.T) {
	s := newSite(t)
	s.Eventually(func() string { _, body := s.get(s.probes, "/readyz"); return body }).Should(gomega.ContainSubstring("no certificate"))
	if code, _ := s.get(s.probes, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	s.certify()
}

func TestAnAgentServesTheControllerAndLogsEachOutcomeOnce(t *testing.T) {
	s := newSite(t)
	s.certify()
	c := s.controller()
	ctx := to(t.Context(), "n1")
	made, err := c.CreateVolume(ctx, create("pvc-1"))
	s.ok(err)
	if _, err := c.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: "pvc-2"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("error %v", err)
	}
	_, err = c.GetCapacity(ctx, &csi.GetCapacityRequest{})
	s.ok(err)
	_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.GetVolume().GetVolumeId()})
	s.ok(err)

	created := s.logged("CreateVolume")
	if len(created) != 2 {
		t.Fatalf("%d lines: %v", len(created), created)
	}
	if line := created[0]; line["volume"] != "pvc-1" || line["pool"] != "default" || line["claim"] != "ns/data" || line["code"] != "OK" || line["duration"] == nil {
		t.Errorf("line %v", line)
	}
	if line := created[1]; line["code"] != "InvalidArgument" || line["reason"] == nil {
		t.Errorf("line %v", line)
	}
	if deleted := s.logged("DeleteVolume"); len(deleted) != 1 || deleted[0]["volume"] != "pvc-1" {
		t.Errorf("lines %v", deleted)
	}
	if asked := s.logged("GetCapacity"); len(asked) > 0 {
		t.Errorf("a call that changes nothing is logged: %v", asked)
	}

	_, text := s.scrape(s.authority, tlstest.Metrics)
	for _, want := range []string{
		`csi_plugin_operations_seconds_count{driver_name="hostpath.berth.storage",grpc_status_code="OK",method_name="/csi.v1.Controller/CreateVolume"} 1`,
		`csi_plugin_operations_seconds_count{driver_name="hostpath.berth.storage",grpc_status_code="InvalidArgument",method_name="/csi.v1.Controller/CreateVolume"} 1`,
		`berth_certificate_expiration_timestamp_seconds{certificate="agent"} `,
		`berth_certificate_expiration_timestamp_seconds{certificate="ca"} `,
		`berth_pool_directory_usable{directory="`,
		`berth_agent_refused_connections_total 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// TestMetricsAreForWhoHasTheirCertificate: not for those who have another of the
// same authority, the agents' own say.
func TestMetricsAreForWhoHasTheirCertificate(t *testing.T) {
	s := newSite(t)
	s.certify()
	if code, _ := s.scrape(s.authority, tlstest.Metrics); code != http.StatusOK {
		t.Errorf("status %d with the right certificate", code)
	}
	stranger, err := tlstest.NewAuthority()
	s.ok(err)
	expired := func(c *x509.Certificate) { tlstest.Metrics(c); tlstest.Expired(c) }
	for name, refused := range map[string]func() (int, string){
		"the agents'":           func() (int, string) { return s.scrape(s.authority, tlstest.Agent) },
		"the controller's":      func() (int, string) { return s.scrape(s.authority, tlstest.Controller) },
		"one that has ended":    func() (int, string) { return s.scrape(s.authority, expired) },
		"another authority's":   func() (int, string) { return s.scrape(stranger, tlstest.Metrics) },
		"none, and unencrypted": func() (int, string) { return s.get(s.metrics, "/metrics") },
	} {
		if code, body := refused(); code == http.StatusOK || strings.Contains(body, "berth_") {
			t.Errorf("%s: status %d", name, code)
		}
	}
}

func TestAnAgentTellsMoreWhenAsked(t *testing.T) {
	s := newSite(t)
	s.certify()
	_, body := s.get(s.probes, "/readyz?verbose")
	for _, want := range []string{"[+]process: runs\n", "[+]pools: 1 of 1 directories can be used\n", "[+]certificate: holds until 2"} {
		if !strings.Contains(body, want) {
			t.Errorf("/readyz?verbose lacks %q:\n%s", want, body)
		}
	}
}

func TestCallsForAnotherNodeAreRefused(t *testing.T) {
	s := newSite(t)
	s.certify()
	for name, ctx := range map[string]context.Context{
		"another": to(t.Context(), "n2"), "none": t.Context(), "two": to(to(t.Context(), "n2"), "n1"),
	} {
		_, err := s.controller().CreateVolume(ctx, create("pvc-1"))
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "this is the agent of node n1") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestOthersThanTheControllerAreCountedAndLogged(t *testing.T) {
	s := newSite(t)
	s.certify()
	other, err := s.authority.Source(s.authority, tlstest.Agent)
	s.ok(err)
	for _, creds := range []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithTransportCredentials(agenttls.ClientCredentials(other)),
	} {
		conn, err := grpc.NewClient(s.address, creds)
		s.ok(err)
		if _, err := csi.NewIdentityClient(conn).Probe(to(t.Context(), "n1"), &csi.ProbeRequest{}); err == nil {
			t.Error("served")
		}
		s.ok(conn.Close())
	}
	// The client may know before the server has said so.
	s.Eventually(func() int { return len(s.logged("Refused a connection")) }).Should(gomega.BeNumerically(">=", 2))
	for _, line := range s.logged("Refused a connection") {
		if line["peer"] == nil || line["reason"] == nil {
			t.Errorf("line %v", line)
		}
	}
	if _, text := s.scrape(s.authority, tlstest.Metrics); strings.Contains(text, "berth_agent_refused_connections_total 0") {
		t.Error("not counted")
	}
}

func TestAnAgentThatEndsFreesItsPoolsAndIsNotReady(t *testing.T) {
	s := newSite(t)
	s.certify()
	_, err := s.controller().CreateVolume(to(t.Context(), "n1"), create("pvc-1"))
	s.ok(err)
	s.ok(s.stop())
	if _, err := net.Dial("tcp", s.address); err == nil {
		t.Error("it listens still")
	}
	if code, body := s.get(s.probes, "/readyz"); code == http.StatusOK {
		t.Errorf("ready: %s", body)
	}
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, what := range []string{"listen", "metrics", "probes"} {
		t.Run(what, func(t *testing.T) {
			o := agent.Options{
				Certificate: agenttls.NewFiles("/none", "/none", "/none", funcr.New(func(_, _ string) {}, funcr.Options{})),
				Listen:      "127.0.0.1:0", Metrics: "0", Probes: "0", Registry: prometheus.NewRegistry(),
			}
			o.Node, err = node.New(node.Options{NodeName: "n1", Pools: map[string][]string{"default": {t.TempDir()}}})
			if err != nil {
				t.Fatal(err)
			}
			for address, name := range map[*string]string{&o.Listen: "listen", &o.Metrics: "metrics", &o.Probes: "probes"} {
				if name == what {
					*address = taken.Addr().String()
				}
			}
			a, err := agent.New(o)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
				t.Errorf("error %v", fmt.Sprint(err))
			}
		})
	}
}
