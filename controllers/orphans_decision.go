package controllers

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-storage/berth/provisioner"
)

// storageState is what storage is to the volume of its name.
type storageState int

const (
	// storageStray: the volume is somewhere else. This was made by an attempt that
	// was given up, or is a copy.
	storageStray storageState = iota
	// storageHere: this is where the volume says that it is.
	storageHere
	// storageMoved: the volume lies in this pool, and names another node.
	storageMoved
	// storageLikely: the volume names another node, and this path. Whether it means
	// this pool is not known.
	storageLikely
)

// compareStorage says what record, of storage that a driver has, is to a volume of
// whose storage it should have the record said.
func compareStorage(record, said provisioner.Record) storageState {
	switch {
	case record.Place == said.Place:
		return storageHere
	case record.Pool != "" && record.Pool == said.Pool:
		return storageMoved
	case (record.Pool == "" || said.Pool == "") && record.Path != "" && record.Path == said.Path:
		return storageLikely
	}
	return storageStray
}

// pathOf returns the directory that volume names to pods, whatever node or server it
// is on; "" when it names none.
func pathOf(volume *corev1.PersistentVolume) string {
	switch source := volume.Spec.PersistentVolumeSource; {
	case source.Local != nil:
		return source.Local.Path
	case source.HostPath != nil:
		return source.HostPath.Path
	case source.NFS != nil:
		return source.NFS.Path
	}
	return ""
}

// adoptable returns which of the storage elsewhere is that of a volume which does not
// say its pool, and whose node does not have it: its name and its path are the
// volume's, and it is the only such. All places must have been read.
func (s *survey) adoptable() []misplaced {
	if len(s.unread) > 0 {
		return nil
	}
	candidates := map[string][]misplaced{}
	for _, m := range s.elsewhere {
		candidates[m.volume.Name] = append(candidates[m.volume.Name], m)
	}
	var own []misplaced
	for name, all := range candidates {
		if _, found := s.found[name]; !found && len(all) == 1 {
			own = append(own, all[0])
		}
	}
	return own
}
