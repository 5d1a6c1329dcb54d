// Package tlstest makes certificates for tests and benchmarks: good ones, and
// ones that must be refused.
package tlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/util/keyutil"

	"github.com/berth-storage/berth/internal/agenttls"
)

// Authority signs certificates.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	// PEM is its certificate.
	PEM []byte
}

// NewAuthority returns a new authority.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "authority " + rand.Text()},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &Authority{certificate: certificate, key: key, PEM: encode(der)}, err
}

// Agent makes a template that of an agent's certificate.
func Agent(c *x509.Certificate) {
	c.DNSNames, c.ExtKeyUsage = []string{agenttls.AgentName}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// Controller makes a template that of the controller's certificate.
func Controller(c *x509.Certificate) {
	c.DNSNames, c.ExtKeyUsage = []string{agenttls.ControllerName}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// Metrics makes a template that of the certificate of who may read metrics.
func Metrics(c *x509.Certificate) {
	c.DNSNames, c.ExtKeyUsage = []string{agenttls.MetricsName}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// Expired makes a template that of a certificate whose time is over.
func Expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// Sign returns a certificate and its key, in PEM. It holds for a day, unless
// changes say otherwise.
func (a *Authority) Sign(changes ...func(*x509.Certificate)) (certificate, key []byte, err error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	for _, change := range changes {
		change(template)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyutil.MarshalPrivateKeyToPEM(private)
	return encode(der), key, err
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Source is an agenttls.Source whose identity is set.
type Source struct {
	mu       sync.Mutex
	identity *agenttls.Identity
}

// Source returns one with a certificate of a, which trusts what trusted signs.
func (a *Authority) Source(trusted *Authority, changes ...func(*x509.Certificate)) (*Source, error) {
	certificate, key, err := a.Sign(changes...)
	if err != nil {
		return nil, err
	}
	identity, err := agenttls.Parse(certificate, key, trusted.PEM)
	return &Source{identity: identity}, err
}

// Identity implements agenttls.Source.
func (s *Source) Identity() (*agenttls.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity, nil
}

// Become gives s the identity of another source.
func (s *Source) Become(other *Source) {
	identity, _ := other.Identity()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = identity
}

// Write writes a certificate of a, with its key and the certificate of a itself,
// into dir as files of a mounted Secret.
func (a *Authority) Write(dir string, changes ...func(*x509.Certificate)) error {
	certificate, key, err := a.Sign(changes...)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		agenttls.CertificateFile: certificate, agenttls.KeyFile: key, agenttls.AuthoritiesFile: a.PEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
