// Package hostpath is the driver hostpath.berth.storage: volumes that are
// directories on a node's own disks.
//
// In its single-node form everything happens in the controller's process, on
// the node it runs on. The decisions that need only the claim and its class
// (parameters.go, volume.go) are apart from the node's part (node.go), which
// knows pools and nothing of Kubernetes.
//
// A pool's directory must have the same path in the process as on the node,
// since that path goes into PersistentVolumes. What a directory must look like
// before it can be a pool, and where deleted and archived volumes are, is said
// in package directory.
package hostpath
