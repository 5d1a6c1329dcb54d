package agenttls

import (
	"crypto/x509"

	"github.com/prometheus/client_golang/prometheus"
)

// Expiry is a prometheus.Collector that tells when certificates end.
type Expiry struct {
	// Certificates returns the certificates of the moment by name.
	Certificates func() map[string]*x509.Certificate
}

var expiryDesc = prometheus.NewDesc("berth_certificate_expiration_timestamp_seconds",
	"When a certificate between the controller and the agents ends, in seconds since 1970. Broken down by certificate: ca, agent, controller.",
	[]string{"certificate"}, nil)

// Describe implements prometheus.Collector.
func (e *Expiry) Describe(descs chan<- *prometheus.Desc) { descs <- expiryDesc }

// Collect implements prometheus.Collector.
func (e *Expiry) Collect(metrics chan<- prometheus.Metric) {
	for name, certificate := range e.Certificates() {
		metrics <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(certificate.NotAfter.Unix()), name)
	}
}

// CertificatesOf returns what there is to tell of one side's source: its own
// certificate under name, and that of the authorities it trusts which lasts
// longest as "ca".
func CertificatesOf(name string, source Source) func() map[string]*x509.Certificate {
	return func() map[string]*x509.Certificate {
		identity, err := source.Identity()
		if err != nil {
			return nil
		}
		certificates := map[string]*x509.Certificate{name: identity.Certificate.Leaf}
		for _, authority := range identity.Authorities {
			if last := certificates["ca"]; last == nil || authority.NotAfter.After(last.NotAfter) {
				certificates["ca"] = authority
			}
		}
		return certificates
	}
}
