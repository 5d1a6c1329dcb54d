// Package request reads what a claim and its StorageClass ask of a driver whose
// volumes are directories, and describes the directory that comes of it as a
// PersistentVolume. It is what such drivers have in common between Kubernetes'
// objects and package directory.
//
// Its errors about a claim or a class are infeasible in the sense of package
// provisioner: they name the field, its value and the fix.
package request
