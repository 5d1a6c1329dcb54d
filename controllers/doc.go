// Package controllers holds the reconcilers: claims to volumes (claim.go), volumes
// to claims (bind.go), larger volumes (expansion.go), the end of volumes
// (volume.go), what kube-scheduler is told of the room on nodes (capacity.go),
// the volumes of nodes that are gone (lost_nodes.go), and the search for storage
// that nobody knows (orphans.go).
//
// What to do is decided by pure functions over API objects, decideClaim,
// decideBind, decideVolume and the like; the reconcilers gather what those need
// and carry out what they say.
package controllers
