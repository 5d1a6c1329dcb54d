package directory_test

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"sync"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

// faultFS is a Filesystem in which a test can make any call fail, and see how
// many directories are open.
type faultFS struct {
	directory.Filesystem
	// before is called before each call of a Dir; its error is the call's.
	before func(op, name string) error
	// after is called after each call that succeeded; its error replaces the
	// result.
	after func(op, name string) error

	mu         sync.Mutex
	open, most int
}

func local(tb testing.TB, base string) directory.Filesystem {
	tb.Helper()
	l, err := directory.NewLocal(base, directory.LocalOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// serialise makes hooks that share state safe for a pool that calls several at
// once, as it does when it reads the markers. Such hooks can't use the pool.
func (f *faultFS) serialise() {
	var mu sync.Mutex
	locked := func(hook func(op, name string) error) func(op, name string) error {
		if hook == nil {
			return nil
		}
		return func(op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			return hook(op, name)
		}
	}
	f.before, f.after = locked(f.before), locked(f.after)
}

func (f *faultFS) call(op, name string, do func() error) error {
	if f.before != nil {
		if err := f.before(op, name); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if f.after != nil {
		return f.after(op, name)
	}
	return nil
}

// dir wraps what open returns; it closes it when the call is made to fail.
func (f *faultFS) dir(op, name string, open func() (directory.Dir, error)) (directory.Dir, error) {
	var d directory.Dir
	err := f.call(op, name, func() (err error) { d, err = open(); return err })
	if err != nil {
		if d != nil {
			d.Close()
		}
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.most = max(f.most, f.open)
	return &faultDir{Dir: d, fs: f}, nil
}

func (f *faultFS) Root(ctx context.Context) (directory.Dir, error) {
	return f.dir("Root", "", func() (directory.Dir, error) { return f.Filesystem.Root(ctx) })
}

type faultDir struct {
	directory.Dir
	fs *faultFS
}

func (d *faultDir) Stat(ctx context.Context) (info directory.Info, err error) {
	err = d.fs.call("Stat", "", func() (err error) { info, err = d.Dir.Stat(ctx); return err })
	return info, err
}

func (d *faultDir) Lstat(ctx context.Context, name string) (info directory.Info, err error) {
	err = d.fs.call("Lstat", name, func() (err error) { info, err = d.Dir.Lstat(ctx, name); return err })
	return info, err
}

func (d *faultDir) Open(ctx context.Context, name string) (directory.Dir, error) {
	return d.fs.dir("Open", name, func() (directory.Dir, error) { return d.Dir.Open(ctx, name) })
}

func (d *faultDir) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	return d.fs.call("Mkdir", name, func() error { return d.Dir.Mkdir(ctx, name, perm) })
}

func (d *faultDir) ReadDir(ctx context.Context) iter.Seq2[directory.Entry, error] {
	return func(yield func(directory.Entry, error) bool) {
		if err := d.fs.call("ReadDir", "", func() error { return nil }); err != nil {
			yield(directory.Entry{}, err)
			return
		}
		d.Dir.ReadDir(ctx)(yield)
	}
}

func (d *faultDir) Remove(ctx context.Context, name string) error {
	return d.fs.call("Remove", name, func() error { return d.Dir.Remove(ctx, name) })
}

func (d *faultDir) Rmdir(ctx context.Context, name string) error {
	return d.fs.call("Rmdir", name, func() error { return d.Dir.Rmdir(ctx, name) })
}

func (d *faultDir) Rename(ctx context.Context, name string, to directory.Dir, newName string) error {
	return d.fs.call("Rename", name, func() error { return d.Dir.Rename(ctx, name, to.(*faultDir).Dir, newName) })
}

func (d *faultDir) ReadFile(ctx context.Context, name string, limit int64) (data []byte, err error) {
	err = d.fs.call("ReadFile", name, func() (err error) { data, err = d.Dir.ReadFile(ctx, name, limit); return err })
	return data, err
}

func (d *faultDir) WriteFile(ctx context.Context, name string, data []byte) error {
	return d.fs.call("WriteFile", name, func() error { return d.Dir.WriteFile(ctx, name, data) })
}

func (d *faultDir) SetAttr(ctx context.Context, attr directory.Attr) error {
	return d.fs.call("SetAttr", "", func() error { return d.Dir.SetAttr(ctx, attr) })
}

func (d *faultDir) Sync(ctx context.Context) error {
	return d.fs.call("Sync", "", func() error { return d.Dir.Sync(ctx) })
}

func (d *faultDir) Lock(ctx context.Context, name string) (lock io.Closer, err error) {
	err = d.fs.call("Lock", name, func() (err error) { lock, err = d.Dir.Lock(ctx, name); return err })
	if err != nil && lock != nil {
		lock.Close()
	}
	return lock, err
}

func (d *faultDir) Close() error {
	d.fs.mu.Lock()
	d.fs.open--
	d.fs.mu.Unlock()
	return d.Dir.Close()
}
