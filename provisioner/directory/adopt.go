package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/berth-storage/berth/provisioner"
)

const existingField = "StorageClass parameter existing"

// refuseMissing says that the directory at path is not there to be adopted. It is
// no infeasible error: neither class nor claim has to change when somebody brings
// the directory.
func refuseMissing(path string) error {
	return fmt.Errorf("%w: %w", ErrNoDirectory, &missingError{path})
}

// missing is refuseMissing where a directory has to be there, and no error where it
// is to be made.
func missing(adopt bool, path string) error {
	if !adopt {
		return nil
	}
	return refuseMissing(path)
}

// missingError names the directory that is not there.
type missingError struct{ path string }

func (e *missingError) Error() string {
	return fmt.Sprintf("%s: \"adopt\": there is no directory %s, and none is made in its place: move it there, or correct pathPattern", existingField, shown(e.path))
}

// Is makes the error one of those that say that something is not there.
func (e *missingError) Is(target error) bool { return target == fs.ErrNotExist }

// refuseMade refuses to call the directory of m adopted, which was made for the
// volume: versions of Berth did that when they found none.
func refuseMade(m Marker) error {
	return fmt.Errorf("create volume %s: %w", m.Volume, provisioner.Infeasible(existingField, "adopt",
		"an earlier attempt has made %s anew for this claim; delete the claim and make it again", shown(m.Path)))
}

// refusePool refuses a directory that is a pool.
func refusePool(ctx context.Context, dir Dir, path string) error {
	switch _, err := dir.Lstat(ctx, adminName); {
	case err == nil:
		return refuse(ErrConflict, path, "the directory holds %s: it is a pool of its own, and no volume", adminName)
	case !notExist(err):
		return err
	}
	return nil
}

// openParent opens the directory above the volume's. What is missing on the way is
// made, unless the volume's was adopted.
func (b *builder) openParent(ctx context.Context) (Dir, error) {
	if !b.marker.Adopted {
		return b.makeParents(ctx)
	}
	above, _ := splitPath(b.marker.Path)
	parent, err := openPath(ctx, b.root, above)
	switch {
	case notExist(err):
		return nil, refuseMissing(b.marker.Path)
	case err != nil:
		return nil, refuseKind(err, b.marker.Path, above)
	}
	return parent, nil
}

// Adoptable returns nil when there is a directory at path that could be adopted,
// an error that wraps ErrNoDirectory when there is nothing, and otherwise why what
// is there can't be, or can't be looked at. It changes nothing, and the pool need
// not be initialised.
func (p *Pool) Adoptable(ctx context.Context, path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if state := p.opened.Load(); state != nil {
		if err := state.index.check(path); err != nil {
			return err
		}
	}
	root, err := p.fs.Root(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := openPath(ctx, root, path)
	switch {
	case notExist(err):
		return refuseMissing(path)
	case err != nil:
		return refuseKind(err, path, path)
	}
	defer dir.Close()
	return refusePool(ctx, dir, path)
}

// Blank reports whether the base is empty and was never used, as that of a new disk
// is, and the place where a disk should be mounted.
func (p *Pool) Blank(ctx context.Context) (bool, error) {
	if p.Opened() {
		return false, nil
	}
	root, err := p.fs.Root(ctx)
	if err != nil {
		return false, err
	}
	defer root.Close()
	return isBlank(ctx, root)
}

func isBlank(ctx context.Context, root Dir) (bool, error) {
	for e, err := range root.ReadDir(ctx) {
		if err != nil {
			return false, fmt.Errorf("read the base: %w", err)
		}
		if e.Name != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

// Holds returns how many bytes of the filesystem the directory at path takes with
// all that is in it, and stops to count once there are as many as enough. What is
// mounted in it does not count, and of a file with several names the part that one
// of them stands for.
func (p *Pool) Holds(ctx context.Context, path string, enough int64) (int64, error) {
	root, err := p.fs.Root(ctx)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	dir, err := openPath(ctx, root, path)
	if err != nil {
		return 0, err
	}
	c := counter{enough: enough}
	err = errors.Join(c.add(ctx, dir, 1), dir.Close())
	return c.held, err
}

// maxCounted is how deep directories are counted, each of which is open while what
// is in it is.
const maxCounted = 128

// counter counts bytes until there are enough.
type counter struct{ enough, held int64 }

// add counts what is in dir, which lies so deep.
func (c *counter) add(ctx context.Context, dir Dir, depth int) error {
	for e, err := range dir.ReadDir(ctx) {
		if err != nil {
			return err
		}
		bytes, err := allocated(dir, e.Name)
		if err != nil && !notExist(err) {
			return err
		}
		if c.held += bytes; c.held >= c.enough {
			return nil
		}
		if e.Type != fs.ModeDir || depth == maxCounted {
			continue
		}
		child, err := dir.Open(ctx, e.Name)
		if notExist(err) || notDirectory(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = errors.Join(c.add(ctx, child, depth+1), child.Close())
		if err != nil || c.held >= c.enough {
			return err
		}
	}
	return nil
}
