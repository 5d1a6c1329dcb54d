// Package provisioner is the contract between Berth's controllers and the
// drivers that own storage.
//
// A driver is any controller.Provisioner of
// sigs.k8s.io/sig-storage-lib-external-provisioner, together with that
// library's optional interfaces (controller.Qualifier,
// controller.DeletionGuard, controller.BlockProvisioner), so a driver written
// for the library plugs in unchanged. The optional interfaces in this package
// add what the library has no words for; the controllers find them by type
// assertion.
package provisioner

import (
	"context"
	"iter"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// Driver creates and deletes volumes. Its calls are idempotent by volume name:
// a call repeated after a crash finishes what the first one began.
//
// Provision must fill in the volume's capacity, access modes, reclaim policy,
// mount options, volume mode, node affinity and source; the controller adds
// the claim reference, the class, the finalizer and the provisioned-by
// annotation.
type Driver = controller.Provisioner

// Inventory is implemented by drivers that can list what they keep, so that
// storage left behind by a crash can be found.
type Inventory interface {
	// Volumes yields every volume the driver keeps a record of. An error does not
	// end the sequence: an *UnreadError tells of which part records are missing,
	// any other error that they may be of any.
	Volumes(ctx context.Context) iter.Seq2[Record, error]

	// RecordOf returns the Record that the driver should have of volume, as far
	// as the volume tells: at least what Discard needs, and Place.
	RecordOf(volume *corev1.PersistentVolume) Record

	// Discard drops a volume that nobody can have used, since no
	// PersistentVolume was ever written or bound for it. It must not be able to
	// destroy data: storage that holds anything is left as it is, and an error
	// that wraps ErrNotEmpty is returned; storage that existed before the volume
	// is let go. A volume the driver does not know is no error.
	Discard(ctx context.Context, record Record) error
}

// BackgroundWorker is implemented by drivers with work that outlives a call,
// such as emptying the trash. The work runs on the elected leader only.
type BackgroundWorker interface {
	// Run works until ctx ends, and returns nil then.
	Run(ctx context.Context) error
}

// Record is what a driver knows of a volume without asking Kubernetes.
type Record struct {
	// Volume is the name of the PersistentVolume.
	Volume string
	// Claim is the claim the volume was made for.
	Claim types.NamespacedName
	// ClaimUID is the UID of that claim.
	ClaimUID types.UID
	// Created is when the driver began to make the volume.
	Created time.Time
	// ID is what the driver finds the volume by, if not its name.
	ID string
	// Place is where the volume is, in the driver's words, if it can be in one
	// of several places.
	Place string
	// Pool is the id of the pool that the volume lies in, "" when it is not known
	// or pools have none.
	Pool string
	// Path is the directory as a PersistentVolume names it to pods, whatever node
	// or server it is on; "" when there is none.
	Path string
}

// Expander is implemented by drivers whose volumes can grow.
type Expander interface {
	// Expand makes room for size bytes in volume, which has less by its
	// spec.capacity, and never takes any away. A call repeated after a crash
	// finishes what the first began.
	//
	// An infeasible error, or one with the gRPC code ResourceExhausted, says that
	// the volume was not made larger, and will not be. After any other the volume
	// may have this size, or get it later, and is asked for it again before it is
	// asked for less.
	Expand(ctx context.Context, volume *corev1.PersistentVolume, size int64) (Expansion, error)
}

// Expansion is what became of a volume that has grown.
type Expansion struct {
	// Size is what the volume has now, in bytes: more than was asked for if it had
	// that before. 0 means what was asked for.
	Size int64
	// Note says what the size means to those who use the volume; it is part of
	// an event, for example "the size is not enforced: …".
	Note string
	// Annotations are those of the volume that are to change.
	Annotations map[string]string
}

// Noticer is implemented by drivers that have more to say of a volume than that it
// was provisioned: whether its storage was made or was there before, and what it has
// less than its claim's owner may think.
type Noticer interface {
	// Notice returns what the owner of volume's claim should know, for the end of
	// the event that says that the volume was made; "" when there is nothing.
	Notice(volume *corev1.PersistentVolume) string
}

// NodeLocal is implemented by drivers whose volumes are tied to one node each.
type NodeLocal interface {
	// NodeOf returns the name of the Node that holds volume, "" when volume is
	// not the driver's.
	NodeOf(volume *corev1.PersistentVolume) string

	// Nodes returns the names of the nodes that the driver has storage on,
	// reachable or not, in no order.
	Nodes(ctx context.Context) ([]string, error)

	// Capacity says how much room there is on a node for volumes of class. A
	// node that has no storage for the class (it lacks the pool) has the zero
	// Capacity and no error. An InfeasibleError says that the class has no
	// volumes anywhere, any other error that the room is not known for now, be
	// it that the node can't be reached or that Nodes does not name it any more.
	Capacity(ctx context.Context, class *storagev1.StorageClass, node string) (Capacity, error)
}

// Capacity is room for volumes, in bytes.
type Capacity struct {
	// Available is how much all further volumes can have together.
	Available int64
	// MaximumVolumeSize is how large the largest of them can be.
	MaximumVolumeSize int64
}
