package agenttls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

type change = func(*x509.Certificate)

// serve runs a gRPC server on loopback and returns its address. What it refuses
// goes to the channel.
func serve(t *testing.T, source agenttls.Source) (address string, refused <-chan error) {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	refusals := make(chan error, 100)
	server := grpc.NewServer(grpc.Creds(agenttls.ServerCredentials(source, func(_ net.Addr, err error) { refusals <- err })))
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String(), refusals
}

// ask connects and makes one call.
func ask(t *testing.T, address string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn := must[*grpc.ClientConn](t)(grpc.NewClient(address, grpc.WithTransportCredentials(creds)))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestAnAgentServesTheControllerOnly(t *testing.T) {
	ours, theirs := must[*tlstest.Authority](t)(tlstest.NewAuthority()), must[*tlstest.Authority](t)(tlstest.NewAuthority())
	source := must[*tlstest.Source](t)
	address, refused := serve(t, source(ours.Source(ours, tlstest.Agent)))
	named := func(name string) change {
		return func(c *x509.Certificate) { tlstest.Controller(c); c.DNSNames = []string{name} }
	}
	for name, tt := range map[string]struct {
		credentials credentials.TransportCredentials
		want        string // of the server's reason; "" when it serves
	}{
		"the controller": {agenttls.ClientCredentials(source(ours.Source(ours, tlstest.Controller))), ""},
		"the controller's name, signed by another authority": {
			agenttls.ClientCredentials(source(theirs.Source(ours, tlstest.Controller))), "unknown authority"},
		"the controller's certificate, expired": {
			agenttls.ClientCredentials(source(ours.Source(ours, tlstest.Controller, tlstest.Expired))), "expired"},
		"an agent's own certificate": {
			agenttls.ClientCredentials(source(ours.Source(ours, tlstest.Agent))), "incompatible key usage"},
		"another name, signed by the right authority": {
			agenttls.ClientCredentials(source(ours.Source(ours, named("other.berth.storage")))), "want controller.berth.storage"},
		"a wildcard": {
			agenttls.ClientCredentials(source(ours.Source(ours, named("*.berth.storage")))), "want controller.berth.storage"},
		"a common name, which counts for nothing": {
			agenttls.ClientCredentials(source(ours.Source(ours, named("x.example"), func(c *x509.Certificate) { c.Subject.CommonName = agenttls.ControllerName }))),
			"want controller.berth.storage"},
		"no certificate": {credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), "didn't provide a certificate"},
		"TLS 1.2":        {credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), "unsupported versions"},
		"plain text":     {insecure.NewCredentials(), "does not look like a TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			err := ask(t, address, tt.credentials)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("served")
			}
			if reason := <-refused; !strings.Contains(reason.Error(), tt.want) {
				t.Errorf("refused since %q, want a reason with %q", reason, tt.want)
			}
			for len(refused) > 0 {
				<-refused //nolint:errcheck // gRPC may have tried again
			}
		})
	}
}

func TestTheControllerTrustsAgentsOnly(t *testing.T) {
	ours, theirs := must[*tlstest.Authority](t)(tlstest.NewAuthority()), must[*tlstest.Authority](t)(tlstest.NewAuthority())
	source := must[*tlstest.Source](t)
	controller := agenttls.ClientCredentials(source(ours.Source(ours, tlstest.Controller)))
	for name, tt := range map[string]struct {
		server *tlstest.Source
		want   string
	}{
		"another authority's": {source(theirs.Source(ours, tlstest.Agent)), "unknown authority"},
		"an expired one's":    {source(ours.Source(ours, tlstest.Agent, tlstest.Expired)), "expired"},
		"the controller's":    {source(ours.Source(ours, tlstest.Controller)), "not agent.berth.storage"},
		"a wildcard": {source(ours.Source(ours, tlstest.Agent, func(c *x509.Certificate) { c.DNSNames = []string{"*.berth.storage"} })),
			"want agent.berth.storage"},
	} {
		t.Run(name, func(t *testing.T) {
			address, _ := serve(t, tt.server)
			if err := ask(t, address, controller); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestARenewedCertificateNeedsNoRestart: both sides go over to another authority
// while they run.
func TestARenewedCertificateNeedsNoRestart(t *testing.T) {
	before, after := must[*tlstest.Authority](t)(tlstest.NewAuthority()), must[*tlstest.Authority](t)(tlstest.NewAuthority())
	source := must[*tlstest.Source](t)
	agent, controller := source(before.Source(before, tlstest.Agent)), source(before.Source(before, tlstest.Controller))
	address, _ := serve(t, agent)
	creds := agenttls.ClientCredentials(controller)
	if err := ask(t, address, creds); err != nil {
		t.Fatal(err)
	}
	agent.Become(source(after.Source(after, tlstest.Agent)))
	if err := ask(t, address, creds); err == nil {
		t.Error("the authority of before is still accepted")
	}
	controller.Become(source(after.Source(after, tlstest.Controller)))
	if err := ask(t, address, creds); err != nil {
		t.Error(err)
	}
}
