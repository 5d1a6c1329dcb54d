// Package chart tests the Helm chart without nodes: what it renders, that
// config/ says the same, and what a real API server makes of it. "make chart-test"
// runs it; package test/install installs it.
package chart
