package agentca

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"
)

// Policy says how long certificates live.
type Policy struct {
	// AuthorityLife is how long an authority holds.
	AuthorityLife time.Duration
	// LeafLife is how long the certificates it signs hold.
	LeafLife time.Duration
	// Overlap is how long everybody has to hear of a change in who is trusted,
	// before something is done that depends on it.
	Overlap time.Duration
}

// DefaultPolicy renews the certificates of both sides every 20 days, and the
// authority every 8 months. kubelet takes some two minutes to bring a changed
// Secret to a pod that mounts it.
var DefaultPolicy = Policy{
	AuthorityLife: 365 * 24 * time.Hour,
	LeafLife:      30 * 24 * time.Hour,
	Overlap:       time.Hour,
}

// decideAuthority returns what the authority should be like at now, and what has
// changed, "" for nothing.
func (p Policy) decideAuthority(now time.Time, have authority, leaves ...leaf) (want authority, change string, err error) {
	want = have
	want.trusted = slices.DeleteFunc(slices.Clone(have.trusted), func(c *x509.Certificate) bool { return !now.Before(c.NotAfter) })
	nextHolds := have.next != nil && holds(have.next.certificate, now)
	switch {
	case have.signing == nil || !holds(have.signing.certificate, now):
		if nextHolds {
			want.signing, want.next, change = have.next, nil, "the next authority signs, since there is no other that holds"
			break
		}
		want.next, change = nil, "made an authority, since there was none that holds"
		if want.signing, err = newAuthority(now, p.AuthorityLife); err != nil {
			return have, "", err
		}
	case !nextHolds && due(have.signing.certificate, now):
		change = "made the next authority, to be trusted from now on"
		if want.next, err = newAuthority(now, p.AuthorityLife); err != nil {
			return have, "", err
		}
	case nextHolds && all(leaves, func(l leaf) bool { return l.trusts(have.next.certificate, now, p.Overlap) }):
		want.trusted = append(want.trusted, have.signing.certificate)
		want.signing, want.next, change = have.next, nil, "the next authority signs from now on"
	case !nextHolds && len(want.trusted) > 1 &&
		all(leaves, func(l leaf) bool { return l.signedBy(have.signing.certificate, now, p.Overlap) }):
		want.next, want.trusted, change = nil, nil, "authorities of before are trusted no more"
	}
	if change == "" && !sameCertificates(have.trusted, want.trusted) {
		change = "an authority whose time is over is trusted no more"
	}
	if change != "" {
		want.trusted = want.all()
	}
	return want, change, nil
}

// all returns everybody whom a trusts, once.
func (a authority) all() []*x509.Certificate {
	certificates := []*x509.Certificate{a.signing.certificate}
	if a.next != nil {
		certificates = append(certificates, a.next.certificate)
	}
	for _, c := range a.trusted {
		if !slices.ContainsFunc(certificates, c.Equal) {
			certificates = append(certificates, c)
		}
	}
	return certificates
}

// decideLeaf returns what the Secret of one side should be like at now, and what
// has changed, "" for nothing.
func (p Policy) decideLeaf(now time.Time, a authority, have leaf) (want leaf, change string, err error) {
	want = have
	if reason := p.renew(now, a.signing, have); reason != "" {
		change = "signed a certificate, since " + reason
		if want.pair, err = newLeaf(a.signing, now, have.kind, p.LeafLife); err != nil {
			return have, "", err
		}
	}
	if bundle := a.bundle(); !bytes.Equal(bundle, have.bundle) || have.trustedSince.IsZero() || have.trustedSince.After(now) {
		want.bundle, want.trustedSince = bundle, now
		if change == "" {
			change = "other authorities are trusted"
		}
	}
	return want, change, nil
}

// renew says why a certificate has to be replaced, or "".
func (p Policy) renew(now time.Time, signing *pair, l leaf) string {
	switch {
	case l.pair == nil:
		return "there was none"
	case !isSignedBy(l.pair.certificate, signing.certificate):
		return "another authority had signed the one there was"
	case !slices.Equal(l.pair.certificate.DNSNames, []string{l.kind.name}) ||
		!slices.Equal(l.pair.certificate.ExtKeyUsage, []x509.ExtKeyUsage{l.kind.usage}):
		return "the one there was is for something else"
	case !holds(l.pair.certificate, now):
		return "the one there was does not hold now"
	case due(l.pair.certificate, now) && leafEnd(signing, now, p.LeafLife).After(l.pair.certificate.NotAfter):
		return "two thirds of the life of the one there was are over"
	}
	return ""
}

func all(leaves []leaf, is func(leaf) bool) bool {
	return !slices.ContainsFunc(leaves, func(l leaf) bool { return !is(l) })
}

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}
