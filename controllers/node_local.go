package controllers

import (
	corev1 "k8s.io/api/core/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/berth-storage/berth/provisioner"
)

// nodeLocalDriver returns the driver of that name, when its volumes are tied to
// nodes.
func nodeLocalDriver(drivers *provisioner.Registry, name string) (provisioner.NodeLocal, bool) {
	driver, ok := drivers.Get(name)
	if !ok {
		return nil, false
	}
	return provisioner.As[provisioner.NodeLocal](driver)
}

// nodeLocalNames returns the names of the drivers whose volumes are tied to
// nodes, sorted.
func nodeLocalNames(drivers *provisioner.Registry) []string {
	var names []string
	for _, name := range drivers.Names() {
		if _, ok := nodeLocalDriver(drivers, name); ok {
			names = append(names, name)
		}
	}
	return names
}

// HasNodeLocal reports whether any driver's volumes are tied to nodes.
func HasNodeLocal(drivers *provisioner.Registry) bool {
	return len(nodeLocalNames(drivers)) > 0
}

// nodeOf returns the name of the Node that holds volume; "" when it is tied to
// none, or not one of drivers'.
func nodeOf(drivers *provisioner.Registry, volume *corev1.PersistentVolume) string {
	local, ok := nodeLocalDriver(drivers, volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	if !ok {
		return ""
	}
	return local.NodeOf(volume)
}
