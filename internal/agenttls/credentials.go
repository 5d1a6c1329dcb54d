package agenttls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

// ClientCredentials are the controller's for connections to agents.
func ClientCredentials(source Source) credentials.TransportCredentials {
	return &client{both{source: source, now: time.Now}}
}

// ServerCredentials are an agent's. They call refused, unless it is nil, with
// each connection that is not the controller's, and why.
func ServerCredentials(source Source, refused func(peer net.Addr, err error)) credentials.TransportCredentials {
	return &server{both: both{source: source, now: time.Now}, refused: refused}
}

// MetricsConfig is the configuration of an agent's HTTPS server for metrics. It
// admits holders of the certificate for MetricsName.
func MetricsConfig(source Source) *tls.Config {
	b := both{source: source, now: time.Now}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return b.serverConfig(MetricsName)
		},
	}
}

// both is what the two sides have in common.
type both struct {
	source Source
	now    func() time.Time
}

// errOneSided is for uses that are not meant.
var errOneSided = errors.New("these credentials are for the other side")

// config returns the settings for one handshake.
func (b both) config() (*tls.Config, *Identity, error) {
	identity, err := b.source.Identity()
	if err != nil {
		return nil, nil, fmt.Errorf("no certificate to show: %w", err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{identity.Certificate},
		SessionTicketsDisabled: true,
		Time:                   b.now,
	}, identity, nil
}

// serverConfig returns the settings for one handshake with a client that has to
// have a certificate for name.
func (b both) serverConfig(name string) (*tls.Config, error) {
	config, identity, err := b.config()
	if err != nil {
		return nil, err
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = identity.pool()
	config.VerifyConnection = func(state tls.ConnectionState) error { return named(state, name) }
	return config, nil
}

// Info implements credentials.TransportCredentials.
func (b both) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// OverrideServerName implements credentials.TransportCredentials. The name is not
// up to the caller.
func (b both) OverrideServerName(string) error { return nil }

type client struct{ both }

// ClientHandshake makes sure that an agent answers.
func (c *client) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, identity, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	config.RootCAs = identity.pool()
	config.VerifyConnection = func(state tls.ConnectionState) error { return named(state, AgentName) }
	// Without this an agent that trusts other authorities would be shown nothing,
	// and could not say what is wrong.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &identity.Certificate, nil
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, AgentName, raw)
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *client) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errOneSided
}

// Clone implements credentials.TransportCredentials.
func (c *client) Clone() credentials.TransportCredentials { return c }

type server struct {
	both
	refused func(net.Addr, error)
}

// ServerHandshake makes sure that the controller asks.
func (s *server) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.handshake(raw)
	if err != nil && s.refused != nil {
		s.refused(raw.RemoteAddr(), err)
	}
	return conn, info, err
}

func (s *server) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := s.serverConfig(ControllerName)
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ServerHandshake(raw)
}

// ClientHandshake implements credentials.TransportCredentials.
func (s *server) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errOneSided
}

// Clone implements credentials.TransportCredentials.
func (s *server) Clone() credentials.TransportCredentials { return s }

// named makes sure that the other side's certificate, whose signature and dates
// are good by now, has that very name: a wildcard would fit both sides.
func named(state tls.ConnectionState, name string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate was shown")
	}
	if names := state.PeerCertificates[0].DNSNames; !slices.Contains(names, name) {
		return fmt.Errorf("the certificate is for %q, want %s", names, name)
	}
	return nil
}
