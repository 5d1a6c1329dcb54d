package agenttls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
)

// Identity is what one side shows of itself, and whom it trusts.
type Identity struct {
	// Certificate is that of this side, with its key. Its Leaf is set.
	Certificate tls.Certificate
	// Authorities are whose signatures on the other side's certificate count.
	Authorities []*x509.Certificate

	once  sync.Once
	roots *x509.CertPool
}

// Source yields the identity of the moment. Its error says why there is none yet.
type Source interface {
	Identity() (*Identity, error)
}

// Parse reads an identity from PEM. It does not look at dates: those who connect
// do, and say so.
func Parse(certificate, key, authorities []byte) (*Identity, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	trusted, err := ParseAuthorities(authorities)
	if err != nil {
		return nil, err
	}
	return &Identity{Certificate: pair, Authorities: trusted}, nil
}

// ParseAuthorities reads the certificates of authorities from PEM: at least one,
// and nothing else.
func ParseAuthorities(text []byte) ([]*x509.Certificate, error) {
	var authorities []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("authorities: want certificates only, found %q", block.Type)
		}
		authority, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		authorities = append(authorities, authority)
	}
	if len(authorities) == 0 {
		return nil, errors.New("authorities: no certificate in PEM found")
	}
	return authorities, nil
}

// pool returns the authorities as crypto/tls wants them. Connections share it.
func (i *Identity) pool() *x509.CertPool {
	i.once.Do(func() {
		i.roots = x509.NewCertPool()
		for _, authority := range i.Authorities {
			i.roots.AddCert(authority)
		}
	})
	return i.roots
}
