package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// writableByOthers are the bits that let others than its owner change what is in
// a directory.
const writableByOthers = 0o022

// makeParents opens the directory above the volume's and makes what is missing
// on the way. What was made for a pattern, by this call or another that may
// still be running, is made durable.
func (b *builder) makeParents(ctx context.Context) (_ Dir, err error) {
	dir := sharedDir(b.root)
	defer func() {
		if err != nil {
			_ = dir.Close()
		}
	}()
	b.above = nil
	path, _ := splitPath(b.marker.Path)
	if path == "" {
		return dir, nil
	}
	components := strings.Split(path, "/")
	for i, name := range components {
		forPattern := i >= len(components)-b.marker.ParentsMade
		child, err := dir.Open(ctx, name)
		if notExist(err) {
			child, err = b.makeParent(ctx, dir, name)
		} else if err == nil && forPattern && !b.fresh && b.marker.Unfinished {
			err = b.closeParent(ctx, child)
		}
		if err != nil {
			return nil, refuseKind(err, b.marker.Path, strings.Join(components[:i+1], "/"))
		}
		if forPattern {
			if err := dir.Sync(ctx); err != nil {
				return nil, errors.Join(err, child.Close())
			}
		}
		_ = dir.Close()
		dir = child
	}
	return dir, nil
}

func (b *builder) makeParent(ctx context.Context, dir Dir, name string) (Dir, error) {
	// Whoever repeats this has to know that its mode may not be set.
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	err := dir.Mkdir(ctx, name, parentMode)
	if err != nil && !exist(err) {
		return nil, vanished(err)
	}
	madeNow := err == nil
	child, err := dir.Open(ctx, name)
	if err != nil {
		return nil, vanished(err)
	}
	if !madeNow {
		return child, nil
	}
	info, err := child.Stat(ctx)
	if err == nil {
		err = b.setParentMode(ctx, child, info)
	}
	if err != nil {
		return nil, errors.Join(err, child.Close())
	}
	return child, nil
}

// closeParent does for a directory of an attempt that has failed halfway what may
// have been left to do: whoever can write into it can take away the volumes. It
// closes what it can't mend.
func (b *builder) closeParent(ctx context.Context, dir Dir) error {
	info, err := dir.Stat(ctx)
	if err == nil && info.Mode&writableByOthers != 0 {
		err = b.setParentMode(ctx, dir, info)
	}
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	return nil
}

// setParentMode gives a directory that was made for a pattern the mode it should
// have had from the start.
func (b *builder) setParentMode(ctx context.Context, dir Dir, info Info) error {
	mode := info.Mode&^permissions | parentMode
	if info.Mode == mode {
		return nil
	}
	err := dir.SetAttr(ctx, Attr{Mode: mode})
	if err != nil {
		return fmt.Errorf("set the mode of a directory above volume %s to %04o: %w: it has mode %04o", b.marker.Volume, mode, err, info.Mode)
	}
	if info, err = dir.Stat(ctx); err != nil {
		return err
	}
	if info.Mode&writableByOthers != 0 {
		b.above = append(b.above, unlikeMode("a directory above it", info.Mode, parentMode))
	}
	return nil
}

func vanished(err error) error {
	if notExist(err) {
		return errVanished
	}
	return err
}
