// Package agent is the process on each node that serves the pools of its node to
// the controller: a node server (package node) behind gRPC with mutual TLS, with
// probes and metrics beside it.
//
// It never talks to the Kubernetes API, and has nothing to talk to it with: all
// that it knows of the cluster comes with the calls.
package agent
