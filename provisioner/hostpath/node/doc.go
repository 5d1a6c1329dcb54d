// Package node is the part of the hostpath driver that touches disks. It serves
// the Identity and Controller services of the Container Storage Interface for
// the pools of one node, and knows nothing of Kubernetes: whoever knows the
// cluster says in each call what a server needs to know of it (package wire).
//
// A pool is one or several directories. A volume lies in one of them, chosen
// when it is made: the one with the most room (placement.go). Directories that
// can't be used for now cost their own volumes only.
//
// Which volume owns which directory is proved by package directory's markers, and
// a volume's id carries a digest of what its marker must say, so that an id which
// somebody made up does nothing.
package node
