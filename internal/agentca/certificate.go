package agentca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// backdate is how much before its making a certificate begins to hold, for clocks
// that are slow.
const backdate = 5 * time.Minute

// pair is a certificate with its key, as PEM and parsed.
type pair struct {
	certificatePEM, keyPEM []byte
	certificate            *x509.Certificate
	key                    crypto.Signer
}

// parsePair reads a pair. It fails when the two don't belong together.
func parsePair(certificatePEM, keyPEM []byte) (*pair, error) {
	both, err := tls.X509KeyPair(certificatePEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := both.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key, a %T, can't sign", both.PrivateKey)
	}
	return &pair{certificatePEM: certificatePEM, keyPEM: keyPEM, certificate: both.Leaf, key: key}, nil
}

// newAuthority makes an authority that holds from now on, for life.
func newAuthority(now time.Time, life time.Duration) (*pair, error) {
	return issue(nil, now, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Berth agents, authority of " + now.UTC().Format(time.RFC3339)},
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	})
}

// newLeaf has authority sign a certificate for one name and one use. It does
// not outlive authority.
func newLeaf(authority *pair, now time.Time, kind leafKind, life time.Duration) (*pair, error) {
	return issue(authority, now, &x509.Certificate{
		Subject:               pkix.Name{CommonName: kind.name},
		DNSNames:              []string{kind.name},
		NotAfter:              leafEnd(authority, now, life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{kind.usage},
		BasicConstraintsValid: true,
	})
}

// leafEnd is when a certificate signed at now would end.
func leafEnd(authority *pair, now time.Time, life time.Duration) time.Time {
	end := now.Add(life)
	if last := authority.certificate.NotAfter; last.Before(end) {
		return last
	}
	return end
}

// issue makes a key, and a certificate from template for it, signed by authority
// or by itself.
func issue(authority *pair, now time.Time, template *x509.Certificate) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.NotBefore = now.Add(-backdate)
	parent, signer := template, crypto.Signer(key)
	if authority != nil {
		parent, signer = authority.certificate, authority.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, err
	}
	return parsePair(pem.EncodeToMemory(&pem.Block{Type: certutil.CertificateBlockType, Bytes: der}), keyPEM)
}

// made is when a certificate of this package was made.
func made(c *x509.Certificate) time.Time { return c.NotBefore.Add(backdate) }

// holds reports whether a certificate is good at now.
func holds(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// due reports whether two thirds of a certificate's life are over.
func due(c *x509.Certificate, now time.Time) bool {
	return now.Sub(c.NotBefore) >= c.NotAfter.Sub(c.NotBefore)*2/3
}

// encode writes certificates as PEM, without repeating any.
func encode(certificates ...*x509.Certificate) []byte {
	var text bytes.Buffer
	written := map[string]bool{}
	for _, c := range certificates {
		if written[string(c.Raw)] {
			continue
		}
		written[string(c.Raw)] = true
		text.Write(pem.EncodeToMemory(&pem.Block{Type: certutil.CertificateBlockType, Bytes: c.Raw}))
	}
	return text.Bytes()
}
