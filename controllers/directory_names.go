package controllers

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/request"
)

// Directory is a directory that PersistentVolumes may name to pods.
type Directory struct {
	// Path is absolute: on Node, or on Server.
	Path string
	// Base is the directory of the pool or the share that Path lies in, "" when it is
	// not known. Volumes of Base itself, and of what is above it, are about the whole
	// disk or share, as administrators make them by hand for backups: those hold
	// nothing up.
	Base string
	// Server is that of an NFS share, "" for a directory of nodes.
	Server string
	// Node is the name of the node that has it; "" when it may be any.
	Node string
	// Pool is the id of the pool that it lies in, if it is known.
	Pool string
}

// DirectoryNames finds the PersistentVolumes, made by anybody, that name a directory,
// one above it in the same pool or share, or one in it. It costs no call as long as there is none.
type DirectoryNames struct {
	// Client reads from the cache, which has the indexes of SetupIndexes.
	Client client.Reader
	// APIReader reads from the API server: a cache that lags holds nobody up.
	APIReader client.Reader
	// Drivers know where their volumes are.
	Drivers *provisioner.Registry
}

// By returns the name of a volume other than except that names d; "" when there is
// none.
func (n *DirectoryNames) By(ctx context.Context, d Directory, except string) (string, error) {
	return n.find(ctx, d, except, func(*corev1.PersistentVolume) bool { return true })
}

// ClaimedBy is By for volumes that a claim has, or may get, or whose directory
// somebody is to remove: all but those that were released, to be retained.
func (n *DirectoryNames) ClaimedBy(ctx context.Context, d Directory, except string) (string, error) {
	return n.find(ctx, d, except, func(v *corev1.PersistentVolume) bool { return !isLeftBehind(v) })
}

// isLeftBehind reports whether the claim of volume is gone and nobody ends it. Its
// data is for whoever an administrator gives it to.
func isLeftBehind(volume *corev1.PersistentVolume) bool {
	ended := volume.Status.Phase == corev1.VolumeReleased || volume.Status.Phase == corev1.VolumeFailed
	return ended && volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain
}

func (n *DirectoryNames) find(ctx context.Context, d Directory, except string, counts func(*corev1.PersistentVolume) bool) (string, error) {
	if d.Path == "" {
		return "", nil
	}
	d.Path = path.Clean(d.Path)
	var node *corev1.Node
	for _, key := range directoryLookups(d.Path) {
		volumes, err := listVolumes(ctx, n.Client, indexDirectory, key)
		if err != nil {
			return "", err
		}
		for _, cached := range volumes {
			if cached.Name == except {
				continue
			}
			if node == nil && d.Node != "" {
				if node, err = n.node(ctx, d.Node); err != nil {
					return "", err
				}
			}
			if !n.names(cached, d, node) {
				continue
			}
			volume := &corev1.PersistentVolume{}
			err := n.APIReader.Get(ctx, types.NamespacedName{Name: cached.Name}, volume)
			switch {
			case apierrors.IsNotFound(err):
			case err != nil:
				return "", fmt.Errorf("read volume %s, which may name %s: %w", cached.Name, d.Path, err)
			case n.names(volume, d, node) && counts(volume):
				return volume.Name, nil
			}
		}
	}
	return "", nil
}

// node reads a Node; nil when there is none.
func (n *DirectoryNames) node(ctx context.Context, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	err := n.Client.Get(ctx, types.NamespacedName{Name: name}, node, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node %q: %w", name, err)
	}
	return node, nil
}

// names reports whether volume names d: by what pods see, or by what its driver
// knows of the place.
func (n *DirectoryNames) names(volume *corev1.PersistentVolume, d Directory, node *corev1.Node) bool {
	if !namesPath(volume, d) {
		return false
	}
	if d.Server != "" || mayRunOn(volume, node) {
		return true
	}
	if other := servingNodeOf(n.Drivers, volume); other != "" && other == d.Node {
		return true
	}
	return d.Pool != "" && poolOf(n.Drivers, volume) == d.Pool
}

// namesPath reports whether volume names d, or a directory above it in its base, or
// one inside it, on whichever node.
func namesPath(volume *corev1.PersistentVolume, d Directory) bool {
	named := pathOf(volume)
	if named == "" {
		return false
	}
	named = path.Clean(named)
	if !related(named, path.Clean(d.Path)) || d.Base != "" && !isProvisioned(volume) && lies(path.Clean(d.Base), named) {
		return false
	}
	if nfs := volume.Spec.NFS; nfs != nil {
		return d.Server != "" && maySameServer(nfs.Server, d.Server)
	}
	return d.Server == ""
}

// isProvisioned reports whether volume was made by a provisioner, for one claim.
func isProvisioned(volume *corev1.PersistentVolume) bool {
	return volume.Annotations[volumehelpers.AnnDynamicallyProvisioned] != ""
}

// related reports whether two clean paths are the same, or one lies in the other.
func related(a, b string) bool {
	return lies(a, b) || lies(b, a)
}

// lies reports whether the clean path inner is outer, or lies in it.
func lies(inner, outer string) bool {
	return inner == outer || strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
}

// maySameServer reports whether two names may be of the same server: when they are
// alike, when one is the other without its domain, and when only one is an address.
func maySameServer(a, b string) bool {
	one, errA := netip.ParseAddr(a)
	two, errB := netip.ParseAddr(b)
	if errA == nil && errB == nil {
		return one.Unmap() == two.Unmap()
	}
	if (errA == nil) != (errB == nil) {
		return true
	}
	a, b = strings.ToLower(strings.TrimSuffix(a, ".")), strings.ToLower(strings.TrimSuffix(b, "."))
	return a == b || strings.HasPrefix(a, b+".") || strings.HasPrefix(b, a+".")
}

// mayRunOn reports whether pods with volume may be on node. A volume without node
// affinity is on all nodes; nil is any node.
func mayRunOn(volume *corev1.PersistentVolume, node *corev1.Node) bool {
	affinity := volume.Spec.NodeAffinity
	if node == nil || affinity == nil || affinity.Required == nil {
		return true
	}
	selector, err := nodeaffinity.NewNodeSelector(affinity.Required)
	return err != nil || selector.Match(node)
}

// directoryOf returns the directory that volume, one of drivers', names.
func directoryOf(drivers *provisioner.Registry, volume *corev1.PersistentVolume) Directory {
	d := Directory{Path: pathOf(volume), Base: baseOf(volume), Node: servingNodeOf(drivers, volume), Pool: poolOf(drivers, volume)}
	if nfs := volume.Spec.NFS; nfs != nil {
		d.Server = nfs.Server
	}
	return d
}

// baseOf returns the directory of the pool or share that volume lies in, or "" when it
// does not say.
func baseOf(volume *corev1.PersistentVolume) string {
	inside := volume.Annotations[request.AnnPath]
	base, ok := strings.CutSuffix(path.Clean(pathOf(volume)), "/"+inside)
	if !ok || inside == "" {
		return ""
	}
	return cmp.Or(base, "/")
}

// poolOf returns the id of the pool that volume says it lies in, or "".
func poolOf(drivers *provisioner.Registry, volume *corev1.PersistentVolume) string {
	driver, ok := drivers.Get(volume.Annotations[volumehelpers.AnnDynamicallyProvisioned])
	if !ok {
		return ""
	}
	inventory, ok := provisioner.As[provisioner.Inventory](driver)
	if !ok {
		return ""
	}
	return inventory.RecordOf(volume).Pool
}

// What a volume is found by in indexDirectory: the directory that it names, and those
// that this one lies in.
const (
	keyNamed  = "is:"
	keyInside = "in:"
	// maxAncestors bounds the keys of one volume.
	maxAncestors = 64
)

// directoryKeys are the keys of a volume. A volume of a pool lies in no other below
// the pool's own directory, by which nobody looks.
func directoryKeys(o client.Object) []string {
	volume := o.(*corev1.PersistentVolume)
	named := pathOf(volume)
	if !path.IsAbs(named) {
		return nil
	}
	named = path.Clean(named)
	base := baseOf(volume)
	keys := []string{keyNamed + named}
	for _, above := range ancestors(named) {
		if base != "" && len(above) <= len(base) {
			break
		}
		keys = append(keys, keyInside+above)
	}
	return keys
}

// directoryLookups are the keys by which all volumes are found that name a clean
// path, or one above or inside it.
func directoryLookups(named string) []string {
	keys := []string{keyNamed + named, keyInside + named, keyNamed + "/"}
	for _, above := range ancestors(named) {
		keys = append(keys, keyNamed+above)
	}
	return keys
}

// ancestors are the directories that a clean path lies in but /, the nearest first.
func ancestors(named string) []string {
	var all []string
	for above := path.Dir(named); above != "/" && above != "." && len(all) < maxAncestors; above = path.Dir(above) {
		all = append(all, above)
	}
	return all
}
