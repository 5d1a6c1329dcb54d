// Package quota limits how much the directories of a disk may hold, by the
// project quotas of ext4 and XFS. It asks the kernel itself, by ioctl(2) and
// quotactl_fd(2): nothing has to be installed on a node.
//
// # Which id is free
//
// A project id is a number on a filesystem, and nobody hands them out: kubelet
// takes some for emptyDir volumes, container runtimes for image layers, an
// administrator by way of /etc/projid. So this package takes ids from a range
// of its own, and only those that the filesystem has no record of: no file, no
// limit. The filesystem itself thereby remembers which ids are in use: an id
// becomes free when the last file that carries it is gone, from the trash too.
//
// What the filesystem can't know is kept here: ids that were chosen a moment
// ago, or that a marker names whose directory a crash kept from being made.
// Processes that don't know of each other, but share a filesystem, begin at
// different places in the range.
//
// # What is enforced
//
// The bytes that a directory's files occupy, in blocks; not their number. ext4
// says EDQUOT at the limit, and lets a process with CAP_SYS_RESOURCE pass,
// which no container has unless it is given it; XFS says ENOSPC, to everyone.
package quota
