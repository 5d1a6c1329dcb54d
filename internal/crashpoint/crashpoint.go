// Package crashpoint names the moments at which a crash is worth testing.
//
// A normal build compiles Reach to nothing. A build with the tag crashpoints
// kills its own process with SIGKILL when it reaches the point that the
// environment variable BERTH_CRASHPOINT names, so that a test can restart it
// and look at what was left behind.
package crashpoint

// Point is a moment between two steps that must be safe to be killed at.
type Point string

// The steps of making, binding, reclaiming and expanding a volume, in order.
const (
	MarkerWritten     Point = "marker-written"
	DirectoryCreated  Point = "directory-created"
	VolumeCreated     Point = "volume-created"
	VolumePhaseBound  Point = "volume-phase-bound"
	ClaimSpecBound    Point = "claim-spec-bound"
	ClaimPhaseBound   Point = "claim-phase-bound"
	MovedToTrash      Point = "moved-to-trash"
	MarkerRemoved     Point = "marker-removed"
	StorageDeleted    Point = "storage-deleted"
	VolumeDeleted     Point = "volume-deleted"
	FinalizerRemoved  Point = "finalizer-removed"
	TrashPartlyPurged Point = "trash-partly-purged"
	SizeAllocated     Point = "size-allocated"
	StorageExpanded   Point = "storage-expanded"
	VolumeExpanded    Point = "volume-expanded"

	// Of volumes with a project quota.
	ProjectSet  Point = "project-set"
	LimitRaised Point = "limit-raised"
	LimitLifted Point = "limit-lifted"
)
