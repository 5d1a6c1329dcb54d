package directory

import (
	"errors"
	"fmt"

	"github.com/berth-storage/berth/provisioner"
)

var (
	// ErrNotInitialised says that a base was never used as a pool, or that the
	// disk that was is not mounted.
	ErrNotInitialised = errors.New("not initialised as a pool")
	// ErrWrongPool says that a base carries another pool's identity, or none
	// where there was one.
	ErrWrongPool = errors.New("not the pool it should be")
	// ErrDamagedMarker says that a marker can't be read or understood.
	ErrDamagedMarker = errors.New("damaged marker")
	// ErrNotOwned says that no marker gives a directory to the volume in
	// question, or that one gives it to another. Nothing was touched.
	ErrNotOwned = errors.New("not owned")
	// ErrConflict says that a path is, holds, or lies in another volume.
	ErrConflict = errors.New("path taken")
	// ErrExists says that a directory exists and belongs to no volume.
	ErrExists = errors.New("directory exists")
	// ErrNoDirectory says that there is no directory to adopt. None was made.
	ErrNoDirectory = errors.New("no directory to adopt")
	// ErrNotADirectory says that something else stands where a directory of a
	// volume's path should be: a file, a symbolic link, a mount point.
	ErrNotADirectory = errors.New("not a plain directory")
)

// refuse returns cause as an infeasible error about the path of a new volume.
func refuse(cause error, path, format string, args ...any) error {
	return fmt.Errorf("%w: %w", cause, provisioner.Infeasible(patternField, path, format, args...))
}

// refuseConflict refuses path since it shares the directory shared, which is
// path or lies above it, with another volume. It says no more of that volume
// than the claim's owner knows: the rest of its path may name another tenant.
func refuseConflict(path, shared string) error {
	if shared == path {
		return refuse(ErrConflict, path, "another volume is, or lies in, %s: choose a pathPattern that gives each claim its own", shown(shared))
	}
	return refuse(ErrConflict, path, "%s is another volume, and volumes must not lie in each other: change the pathPattern", shown(shared))
}
