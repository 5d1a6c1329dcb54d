// Package nfsfs keeps the directories of package directory on an NFS server.
package nfsfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"syscall"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// Filesystem is a directory.Filesystem whose base is a client's share.
type Filesystem struct{ client *client.Client }

// New returns the filesystem of c, which stays the caller's to close.
func New(c *client.Client) *Filesystem { return &Filesystem{client: c} }

// Root opens the share.
func (f *Filesystem) Root(ctx context.Context) (directory.Dir, error) {
	root, err := f.client.Root(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return &dir{root}, nil
}

// Space reports the size of the filesystem that holds the share.
func (f *Filesystem) Space(ctx context.Context) (directory.Space, error) {
	space, err := f.client.Space(ctx)
	return directory.Space{Total: space.Total, Free: space.Free}, translate(err)
}

// unanswered is an error for want of an answer, in the client's words.
type unanswered struct{ error }

func (e unanswered) Unwrap() []error { return []error{e.error, directory.ErrNoAnswer} }

// translate makes the client's sentinels the engine's.
func translate(err error) error {
	if errors.Is(err, client.ErrUnreachable) || errors.Is(err, client.ErrBusy) {
		err = unanswered{err}
	}
	for theirs, ours := range map[error]error{
		client.ErrOutcomeUnknown: directory.ErrOutcomeUnknown,
		client.ErrCrossesMount:   directory.ErrCrossesMount,
		client.ErrTooLarge:       directory.ErrTooLarge,
	} {
		if errors.Is(err, theirs) {
			return fmt.Errorf("%w: %w", ours, err)
		}
	}
	return err
}

type dir struct{ dir *client.Dir }

func info(i client.Info, err error) (directory.Info, error) {
	return directory.Info{Type: i.Type, Mode: i.Mode, UID: i.UID, GID: i.GID}, translate(err)
}

func (d *dir) Stat(ctx context.Context) (directory.Info, error) { return info(d.dir.Stat(ctx)) }

func (d *dir) Lstat(ctx context.Context, name string) (directory.Info, error) {
	return info(d.dir.Lstat(ctx, name))
}

func (d *dir) Open(ctx context.Context, name string) (directory.Dir, error) {
	child, err := d.dir.Open(ctx, name)
	if err != nil {
		return nil, translate(err)
	}
	return &dir{child}, nil
}

// Mkdir says fs.ErrNotExist when the directory itself is gone, as a local
// filesystem does. Nothing else takes a stale handle for a missing name: the
// server may only have been set up anew, with all markers in place.
func (d *dir) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	err := d.dir.Mkdir(ctx, name, uint32(perm.Perm()))
	if errors.Is(err, syscall.ESTALE) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return translate(err)
}

func (d *dir) ReadDir(ctx context.Context) iter.Seq2[directory.Entry, error] {
	return func(yield func(directory.Entry, error) bool) {
		for e, err := range d.dir.ReadDir(ctx) {
			if !yield(directory.Entry{Name: e.Name, Type: e.Type}, translate(err)) {
				return
			}
		}
	}
}

func (d *dir) Remove(ctx context.Context, name string) error {
	return translate(d.dir.Remove(ctx, name))
}

func (d *dir) Rmdir(ctx context.Context, name string) error { return translate(d.dir.Rmdir(ctx, name)) }

// Rename looks first, since NFS has no rename that does not replace.
func (d *dir) Rename(ctx context.Context, name string, to directory.Dir, newName string) error {
	target, ok := to.(*dir)
	if !ok {
		return fmt.Errorf("rename %q: %w", name, syscall.EXDEV)
	}
	switch _, err := target.dir.Lstat(ctx, newName); {
	case err == nil:
		return fmt.Errorf("rename %q to %q: %w", name, newName, syscall.EEXIST)
	case !errors.Is(err, fs.ErrNotExist):
		return translate(err)
	}
	return translate(d.dir.Rename(ctx, name, target.dir, newName))
}

func (d *dir) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := d.dir.ReadFile(ctx, name, limit)
	return data, translate(err)
}

func (d *dir) WriteFile(ctx context.Context, name string, data []byte) error {
	return translate(d.dir.WriteFile(ctx, name, directory.TempPrefix, data))
}

func (d *dir) SetAttr(ctx context.Context, attr directory.Attr) error {
	return translate(d.dir.SetAttr(ctx, client.SetAttr{Mode: &attr.Mode, UID: attr.UID, GID: attr.GID}))
}

// Sync has nothing to do: a server makes a change durable before it answers.
func (d *dir) Sync(ctx context.Context) error { return ctx.Err() }

// Lock makes the file but locks nothing: version 3 has no locks of its own. One
// controller leads, and it alone changes a share.
func (d *dir) Lock(ctx context.Context, name string) (io.Closer, error) {
	found, err := d.dir.Lstat(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = d.dir.WriteFile(ctx, name, directory.TempPrefix, nil)
	case err == nil && found.Type != 0:
		err = fmt.Errorf("lock %q: not a regular file: %w", name, syscall.EINVAL)
	}
	if err != nil {
		return nil, translate(err)
	}
	return io.NopCloser(nil), nil
}

func (d *dir) Close() error { return nil }
