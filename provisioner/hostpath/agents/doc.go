// Package agents reaches the node servers (package node) that berth agent runs
// on the nodes of a cluster: it is hostpath.Nodes for many nodes.
//
// It finds agents by the EndpointSlices of their Service, which tell for every
// pod the node it runs on, where it can be reached, and whether it is ready. It
// calls each over one connection, made when it is first needed and closed when it
// has not been needed for a while. An agent that does not answer delays the volumes
// of its own node only (package gate).
package agents
