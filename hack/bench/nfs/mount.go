package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/test/nfsserver"
)

// mountCommand is how the benchmark calls itself to be a mount: PORT MOUNTPORT
// VERSION SHARE DIRECTORY. It writes a line once it is mounted, and ends when it
// is unmounted.
const mountCommand = "mount"

// mounts makes volumes through a mount of its own for each call.
type mounts struct {
	site           *site
	version, share string
	dir            string
}

func newMounts(_ context.Context, s *site, version, name string) (way, error) {
	share, err := s.share(name, version)
	if err != nil {
		return nil, err
	}
	m := &mounts{site: s, version: version, share: share, dir: filepath.Join(s.dir, name)}
	return m, os.Mkdir(m.dir, 0o700)
}

func (m *mounts) create(ctx context.Context, i int) error {
	return m.mounted(ctx, i, func(root string) error {
		path := filepath.Join(root, fmt.Sprint("volume-", i))
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		return os.Chmod(path, iofs.FileMode(mode&0o777)|iofs.ModeSetgid)
	})
}

func (m *mounts) remove(ctx context.Context, i int) error {
	return m.mounted(ctx, i, func(root string) error { return os.RemoveAll(filepath.Join(root, fmt.Sprint("volume-", i))) })
}

// mounted calls f with the share mounted.
func (m *mounts) mounted(ctx context.Context, i int, f func(root string) error) (err error) {
	root := filepath.Join(m.dir, strconv.Itoa(i))
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, mountCommand, fmt.Sprint(m.site.server.Port), fmt.Sprint(m.site.server.MountPort), m.version, m.share, root) //nolint:gosec // this program
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(root)) }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return errors.Join(fmt.Errorf("mount: %w", err), cmd.Wait())
	}
	err = f(root)
	return errors.Join(err, syscall.Unmount(root, 0), cmd.Wait())
}

func (m *mounts) close() error { return os.RemoveAll(m.dir) }

// serveMount is what runs while a share is mounted.
func serveMount(ctx context.Context, args []string) error {
	if len(args) != 5 {
		return errors.New("mount wants PORT MOUNTPORT VERSION SHARE DIRECTORY")
	}
	port, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return err
	}
	mountPort, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Options{
		Server: nfsserver.Address, Port: uint16(port), MountPort: uint16(mountPort), Version: client.Version(args[2]), Share: args[3],
	})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:contextcheck // it is given up at the end, whatever ctx says
	root, err := c.Root(ctx)
	if err != nil {
		return err
	}
	server, err := fs.Mount(args[4], &directory{dir: root}, &fs.Options{MountOptions: fuse.MountOptions{FsName: "nfs", DirectMount: true}})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(os.Stdout, "mounted\n"); err != nil {
		return err
	}
	server.Wait()
	return nil
}

// directory is one of the share's directories, with what making and removing
// others takes.
type directory struct {
	fs.Inode
	dir *client.Dir
}

var (
	_ fs.NodeGetattrer = (*directory)(nil)
	_ fs.NodeSetattrer = (*directory)(nil)
	_ fs.NodeLookuper  = (*directory)(nil)
	_ fs.NodeMkdirer   = (*directory)(nil)
	_ fs.NodeRmdirer   = (*directory)(nil)
	_ fs.NodeReaddirer = (*directory)(nil)
)

func (d *directory) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	info, err := d.dir.Stat(patient(ctx))
	out.Mode, out.Owner = syscall.S_IFDIR|info.Mode, fuse.Owner{Uid: info.UID, Gid: info.GID}
	return errno(err)
}

func (d *directory) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if mode, ok := in.GetMode(); ok {
		if err := d.dir.SetAttr(patient(ctx), client.SetAttr{Mode: new(mode & 0o7777)}); err != nil {
			return errno(err)
		}
	}
	return d.Getattr(ctx, nil, out)
}

func (d *directory) Lookup(ctx context.Context, name string, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	child, err := d.dir.Open(patient(ctx), name)
	if err != nil {
		return nil, errno(err)
	}
	return d.NewInode(ctx, &directory{dir: child}, fs.StableAttr{Mode: syscall.S_IFDIR}), 0
}

func (d *directory) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if err := d.dir.Mkdir(patient(ctx), name, mode); err != nil {
		return nil, errno(err)
	}
	return d.Lookup(ctx, name, out)
}

func (d *directory) Rmdir(ctx context.Context, name string) syscall.Errno {
	return errno(d.dir.Rmdir(patient(ctx), name))
}

func (d *directory) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	var entries []fuse.DirEntry
	for e, err := range d.dir.ReadDir(patient(ctx)) {
		if err != nil {
			return nil, errno(err)
		}
		entries = append(entries, fuse.DirEntry{Name: e.Name, Mode: syscall.S_IFDIR})
	}
	return fs.NewListDirStream(entries), 0
}

// patient is ctx without the kernel's wish to interrupt a call whenever a signal
// reaches the caller, as the Go runtime's do.
func patient(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// errno returns the number in an error of the client.
func errno(err error) syscall.Errno {
	var number syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &number):
		return number
	}
	return syscall.EIO
}
