package cli

import (
	"fmt"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the name of the Lease that replicas elect by.
const leaseName = "berth.storage"

// lock returns what replicas elect by under the name of --leader-elect-identity,
// or nil, to let the manager think of a name that no other process has.
//
// A name that stays the same while the container is started again lets a leader
// that was killed go on at once: the Lease is its own.
func (o *controllerOptions) lock(c *rest.Config) (resourcelock.Interface, error) {
	if !o.leaderElect || o.leaderElectIdentity == "" {
		return nil, nil
	}
	namespace := o.leaderElectNamespace
	if namespace == "" {
		text, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, fmt.Errorf("--leader-elect-identity outside a pod needs --leader-elect-namespace: %w", err)
		}
		namespace = strings.TrimSpace(string(text))
	}
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, namespace, leaseName,
		resourcelock.ResourceLockConfig{Identity: o.leaderElectIdentity}, c, o.renewDeadline)
	if err != nil {
		return nil, fmt.Errorf("set up leader election: %w", err)
	}
	return lock, nil
}
