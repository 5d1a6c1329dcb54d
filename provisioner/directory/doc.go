// Package directory makes volumes that are directories: it names them, proves
// which volume owns which, creates them, and moves them to the trash or the
// archive. It is written over the small interface Filesystem, so that a local
// disk and an NFS export are handled by the same code.
//
// # Layout of a base
//
// A Pool owns one directory, its base:
//
//	<base>/<path of a volume>          a volume; the path comes from a Pattern
//	<base>/.berth/                     0700, never visible to a tenant
//	<base>/.berth/pool.json            the identity of the pool
//	<base>/.berth/lock                 held by the one process that owns the base
//	<base>/.berth/volumes/<pv>.json    the marker of a volume: who owns which path
//	<base>/.berth/archive/<name>       what `onDelete: archive` kept, and
//	<base>/.berth/archive/<name>.json  the marker it had
//	<base>/.berth/trash/               deleted volumes until they are purged
//
// An archive's name is the volume's path with each "/" replaced by "_",
// followed by the PersistentVolume's name when the path doesn't end with it.
//
// # What a marker proves
//
// A marker is written, durably, before the directory it names is made, and is
// removed, durably, after the directory was moved away. A directory is touched
// only when a marker names it, and a marker counts only when it names the
// claim (by UID) and the path that the caller expects. So no PersistentVolume,
// however forged, can make Berth delete a directory that Berth did not make
// for that very claim.
//
// A marker that can't be read (a damaged disk, a careless hand) leaves its
// directory unknown. Until it is repaired or removed, the pool makes no volume
// below directories it does not know, adopts nothing, and does not delete the
// volume in question; everything else goes on. When no marker can be read, or
// what is beside it can't be either, it is not the marker that is damaged: the
// pool fails then. That a disk or a server did not answer says nothing.
//
// # Who may use a directory
//
// Mode and owner of a volume are set once, after its directory was made and
// before anybody can know of it. Until then its marker says that it is unfinished,
// or its mode is 0700, as that of the last volume made beside it was. What the filesystem gives a new directory does not matter, since it may have
// inherited more than was asked for. Afterwards they are a matter of
// kubelet and of the volume's owner, and are not touched.
//
// Options.CloseBase takes the base of a pool from other users of the machine, who
// would come by it to what pods put into their volumes.
//
// # The first use of a base
//
// The worst a provisioner can do on a reboot is to fill the directory that a
// disk should have been mounted on. A base is therefore never created, and
// only a base that was never used is initialised, on the first Create:
//
//   - A base that holds nothing but lost+found is initialised, unless
//     Options.RefuseInitialise says no. That is where whoever knows more than
//     the disk has a say: a hostpath driver refuses when Kubernetes has
//     volumes in this pool already, for then the disk is missing.
//
//   - A base that holds anything else, such as an NFS export in use or a
//     directory of another provisioner, is refused until an administrator
//     says that it is the right one, by making an empty directory in it:
//
//     mkdir <base>/.berth
//
//     What is there stays as it is, and becomes a volume only under
//     `existing: adopt`.
//
//   - A base whose .berth directory has content but no pool.json is refused:
//     restore the file from a backup. So is one with a pool.json but without the
//     directory of the markers, which was there before: without them nobody
//     knows whose the directories are.
//
//   - A base whose pool.json names another pool or driver is refused: two disks
//     were swapped, or a pool was renamed. In the second case edit the name.
//
//   - A process that has seen a pool's identity works with no other: a base
//     that changes under it is refused until the right one is back.
//
// Nothing but Create initialises a base; in particular, deleting a volume from
// a base that was not initialised fails, rather than finding the volume gone.
//
// For a base that is the root of a disk's filesystem, LocalOptions.RequireMount
// refuses the directory underneath even when it is empty.
package directory
