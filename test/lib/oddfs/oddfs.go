// Package oddfs makes this machine's disk behave like filesystems that have a will
// of their own: that inherit access lists, know no modes, or have damaged files.
package oddfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Change is what becomes of an attempt to change a mode or an owner.
type Change int

// The values of Change.
const (
	// Made is what most filesystems do.
	Made Change = iota
	// Ignored is a success without an effect.
	Ignored
	// Refused is EPERM.
	Refused
)

// FS is a directory.Filesystem over another. Its fields may be changed while nobody
// uses it.
type FS struct {
	directory.Filesystem
	// MkdirMode is the mode that new directories get, whatever was asked for; 0
	// leaves it as it is.
	MkdirMode uint32
	Chmod     Change
	Chown     Change
	// Spared are the names of the directories for which Chmod and Chown do not
	// count.
	Spared []string
	// ReadFile, when set, is asked before each file is read; its error is the
	// answer.
	ReadFile func(name string) error
	// WroteFile, when set, is told of each file that was written.
	WroteFile func(name string, data []byte)
}

// Root opens the base.
func (f *FS) Root(ctx context.Context) (directory.Dir, error) {
	root, err := f.Filesystem.Root(ctx)
	if err != nil {
		return nil, err
	}
	return &dir{Dir: root, fs: f}, nil
}

type dir struct {
	directory.Dir
	fs   *FS
	name string
}

func (d *dir) Open(ctx context.Context, name string) (directory.Dir, error) {
	child, err := d.Dir.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &dir{Dir: child, fs: d.fs, name: name}, nil
}

func (d *dir) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	if err := d.Dir.Mkdir(ctx, name, perm); err != nil || d.fs.MkdirMode == 0 {
		return err
	}
	child, err := d.Dir.Open(ctx, name)
	if err != nil {
		return err
	}
	return errors.Join(child.SetAttr(ctx, directory.Attr{Mode: d.fs.MkdirMode}), child.Close())
}

func (d *dir) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	if d.fs.ReadFile != nil {
		if err := d.fs.ReadFile(name); err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
	}
	return d.Dir.ReadFile(ctx, name, limit)
}

func (d *dir) WriteFile(ctx context.Context, name string, data []byte) error {
	err := d.Dir.WriteFile(ctx, name, data)
	if err == nil && d.fs.WroteFile != nil {
		d.fs.WroteFile(name, data)
	}
	return err
}

func (d *dir) Rename(ctx context.Context, name string, to directory.Dir, newName string) error {
	other, ok := to.(*dir)
	if !ok {
		return syscall.EXDEV
	}
	return d.Dir.Rename(ctx, name, other.Dir, newName)
}

func (d *dir) SetAttr(ctx context.Context, attr directory.Attr) error {
	for _, name := range d.fs.Spared {
		if d.name == name {
			return d.Dir.SetAttr(ctx, attr)
		}
	}
	chown, chmod := d.fs.Chown, d.fs.Chmod
	if attr.UID == nil && attr.GID == nil {
		chown = Ignored
	}
	switch chown {
	case Refused:
		return fmt.Errorf("chown: %w", syscall.EPERM)
	case Ignored:
		attr.UID, attr.GID = nil, nil
	}
	if chmod == Made {
		return d.Dir.SetAttr(ctx, attr)
	}
	if chown == Made {
		now, err := d.Stat(ctx)
		if err != nil {
			return err
		}
		attr.Mode = now.Mode
		if err := d.Dir.SetAttr(ctx, attr); err != nil {
			return err
		}
	}
	if chmod == Refused {
		return fmt.Errorf("chmod: %w", syscall.EPERM)
	}
	return nil
}
