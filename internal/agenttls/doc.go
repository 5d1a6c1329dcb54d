// Package agenttls is how the controller and the agents on the nodes know each
// other: TLS 1.3 with a certificate on either side, signed by an authority that
// signs nothing else.
//
// The two certificates differ in name and use. An agent accepts nobody but the
// controller, and the controller nobody but an agent; so what lies on a node, the
// certificate of agents, can't give orders to other nodes.
//
// A handshake uses the certificate of the moment, so that a renewed one needs no
// restart. Sessions are not resumed, as that would skip the check.
package agenttls

const (
	// AgentName is the name in the certificate of agents. All have the same, as
	// agents come and go with nodes, and have no addresses that last.
	AgentName = "agent.berth.storage"
	// ControllerName is the name in the certificate of the controller.
	ControllerName = "controller.berth.storage"
	// MetricsName is the name in the certificate of who may read the metrics of
	// agents, and nothing else.
	MetricsName = "metrics.berth.storage"
)

// The files of a certificate, as Secrets of type kubernetes.io/tls and
// cert-manager name them.
const (
	CertificateFile = "tls.crt"
	KeyFile         = "tls.key"
	AuthoritiesFile = "ca.crt"
)
