// Package hostpath is the driver hostpath.berth.storage: volumes that are
// directories on nodes' own disks.
//
// The driver reads a claim and its class (parameters.go), finds the node that the
// volume is to be on (provision.go, choose.go), asks the server there to make it,
// and describes it as a PersistentVolume (volume.go). It touches no disk: what does
// is package node, a server of the Container Storage Interface, and what both agree
// on beyond CSI is package wire.
//
// Nodes says how the driver reaches servers. In a single-node install the one
// server runs in the controller's process (local.go).
//
// A pool's directory must have the same path in the server's process as on the
// node, since that path goes into PersistentVolumes. What a directory must look
// like before it can be a pool, and where deleted and archived volumes are, is said
// in package directory.
package hostpath
