package agentca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/berth-storage/berth/internal/agenttls"
)

// The keys in the authority's Secret of the authority that comes next.
const (
	nextCertificateFile = "next.crt"
	nextKeyFile         = "next.key"
)

// annTrustedSince says since when a Secret has had its present list of trusted
// authorities.
const annTrustedSince = "berth.storage/trusted-since"

// authority is what its Secret says.
type authority struct {
	// signing signs; nil when there is none that can be read.
	signing *pair
	// next will sign, once everybody trusts it.
	next *pair
	// trusted are all whose signature counts.
	trusted []*x509.Certificate
}

// parseAuthority reads what can be read. What can't is as good as not there; the
// error says so, and is no reason to stop.
func parseAuthority(data map[string][]byte) (a authority, problem error) {
	if len(data[agenttls.CertificateFile]) > 0 {
		if a.signing, problem = parsePair(data[agenttls.CertificateFile], data[agenttls.KeyFile]); problem != nil {
			problem = fmt.Errorf("the authority can't be read: %w", problem)
		}
	}
	if len(data[nextCertificateFile]) > 0 {
		next, err := parsePair(data[nextCertificateFile], data[nextKeyFile])
		if err != nil {
			problem = fmt.Errorf("the next authority can't be read: %w", err)
		}
		a.next = next
	}
	a.trusted, _ = agenttls.ParseAuthorities(data[agenttls.AuthoritiesFile])
	return a, problem
}

// data is how a is kept.
func (a authority) data() map[string][]byte {
	data := map[string][]byte{
		agenttls.CertificateFile: a.signing.certificatePEM,
		agenttls.KeyFile:         a.signing.keyPEM,
		agenttls.AuthoritiesFile: a.bundle(),
	}
	if a.next != nil {
		data[nextCertificateFile], data[nextKeyFile] = a.next.certificatePEM, a.next.keyPEM
	}
	return data
}

// bundle is whom to trust: who signs comes first.
func (a authority) bundle() []byte {
	all := []*x509.Certificate{a.signing.certificate}
	if a.next != nil {
		all = append(all, a.next.certificate)
	}
	return encode(append(all, a.trusted...)...)
}

// leafKind is one of the certificates that the authority signs.
type leafKind struct {
	label string // of the metric
	name  string
	usage x509.ExtKeyUsage
}

var (
	agentKind      = leafKind{"agent", agenttls.AgentName, x509.ExtKeyUsageServerAuth}
	controllerKind = leafKind{"controller", agenttls.ControllerName, x509.ExtKeyUsageClientAuth}
	metricsKind    = leafKind{"metrics", agenttls.MetricsName, x509.ExtKeyUsageClientAuth}
)

// leaf is what the Secret of one of these says.
type leaf struct {
	kind leafKind
	// pair is nil when there is none that can be read.
	pair *pair
	// bundle is whom the holder trusts, and since when.
	bundle       []byte
	trustedSince time.Time
}

func parseLeaf(kind leafKind, data map[string][]byte, annotations map[string]string) (l leaf, problem error) {
	l = leaf{kind: kind, bundle: data[agenttls.AuthoritiesFile]}
	if len(data[agenttls.CertificateFile]) > 0 {
		if l.pair, problem = parsePair(data[agenttls.CertificateFile], data[agenttls.KeyFile]); problem != nil {
			problem = fmt.Errorf("the certificate can't be read: %w", problem)
		}
	}
	// One that can't be read is zero, and taken for missing.
	l.trustedSince, _ = time.Parse(time.RFC3339, annotations[annTrustedSince])
	return l, problem
}

func (l leaf) data() map[string][]byte {
	return map[string][]byte{
		agenttls.CertificateFile: l.pair.certificatePEM,
		agenttls.KeyFile:         l.pair.keyPEM,
		agenttls.AuthoritiesFile: l.bundle,
	}
}

func (l leaf) annotations() map[string]string {
	return map[string]string{annTrustedSince: l.trustedSince.UTC().Format(time.RFC3339)}
}

// trusts reports whether the holder has trusted authority for at least that long.
func (l leaf) trusts(authority *x509.Certificate, now time.Time, long time.Duration) bool {
	authorities, _ := agenttls.ParseAuthorities(l.bundle)
	listed := slices.ContainsFunc(authorities, authority.Equal)
	return listed && !l.trustedSince.IsZero() && now.Sub(l.trustedSince) >= long
}

// signedBy reports whether authority has signed the certificate at least that
// long ago.
func (l leaf) signedBy(authority *x509.Certificate, now time.Time, long time.Duration) bool {
	return l.pair != nil && isSignedBy(l.pair.certificate, authority) && now.Sub(made(l.pair.certificate)) >= long
}

func isSignedBy(c, authority *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, authority.RawSubject) && c.CheckSignatureFrom(authority) == nil
}
