// Package controllers holds the reconcilers: claims to volumes (claim.go), volumes
// to claims (bind.go), the end of volumes (volume.go), and the search for
// storage that nobody knows (orphans.go).
//
// What to do is decided by pure functions over API objects, decideClaim,
// decideBind and decideVolume; the reconcilers gather what those need and carry
// out what they say.
package controllers
