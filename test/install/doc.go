// Package install installs Berth on a cluster with two real kubelets as its users
// do, by Helm and by kustomize, and looks at what an installation promises: a
// first volume soon, upgrades and removals that leave data and pods alone, leaders
// that are followed by others, no right that nobody uses. "make chart-e2e" runs it.
package install
