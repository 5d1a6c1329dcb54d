package provisioner

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// PoolKeeper is implemented by NodeLocal drivers whose volumes lie in pools that
// have an id of their own, by which a pool is known when the name of its node
// changes, or its disk is moved to another node.
type PoolKeeper interface {
	// MeetNodes asks the nodes that have not said lately which pools they have, and
	// those that another one contradicts.
	MeetNodes(ctx context.Context) error

	// SharedPools returns the pools whose id was found in more than one place, after
	// it has asked there again.
	SharedPools(ctx context.Context) []SharedPool

	// Moved reports whether volume names a node that does not have its pool, while
	// another one has. It asks nobody.
	Moved(volume *corev1.PersistentVolume) (from, to string, moved bool)

	// Identify returns the annotations that volume should have and lacks, so that
	// the pool of record is known as its own; none unless that is certain. Record is
	// of storage with the volume's name.
	Identify(ctx context.Context, volume *corev1.PersistentVolume, record Record) map[string]string
}

// SharedPool is an id that should be of one pool, and is of more.
type SharedPool struct {
	ID     string
	Places []PoolPlace
}

// PoolPlace is where a pool was found.
type PoolPlace struct {
	Node string
	// Directory is absolute on the node.
	Directory string
}

// String names the place.
func (p PoolPlace) String() string { return fmt.Sprintf("%s on node %s", p.Directory, p.Node) }

// UnreadError says that a part of what a driver keeps could not be read.
type UnreadError struct {
	// Place is how the Place of all Records of that part begins.
	Place string
	Err   error
}

// Error returns the text of Err.
func (e *UnreadError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *UnreadError) Unwrap() error { return e.Err }
