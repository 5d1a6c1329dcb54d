package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"syscall"
)

const (
	// maxName is NAME_MAX of every filesystem in use.
	maxName = 255
	// chunkSize is how much of a file one call carries, which every server
	// takes.
	chunkSize = 32 << 10
	// fileMode is the mode of the files that WriteFile makes.
	fileMode = 0o600
)

// Info describes a file or a directory.
type Info struct {
	// Type holds the type bits of a fs.FileMode: fs.ModeDir, fs.ModeSymlink, …
	Type fs.FileMode
	// Mode holds the twelve bits that chmod(2) knows.
	Mode uint32
	// UID and GID are the owners. A version 4 server that sends names instead of
	// numbers leaves root as 0 and anybody else as 65534.
	UID, GID uint32
	// Size is the length of a file.
	Size uint64

	filesystem [2]uint64
}

// Entry is what ReadDir knows of a directory's entry.
type Entry struct {
	Name string
	// Type is fs.ModeIrregular when the server does not say.
	Type fs.FileMode
}

// SetAttr is what to change; nil leaves a value as it is.
type SetAttr struct {
	Mode, UID, GID *uint32
}

// Space is the size of a filesystem.
type Space struct {
	// Total and Free are bytes; Free is what this user may use.
	Total, Free uint64
	// TotalFiles and FreeFiles count files.
	TotalFiles, FreeFiles uint64
}

// Dir is a directory, by the server's handle: it stays the same when it is
// renamed or its path is replaced. Nothing has to be closed. No method follows
// a symbolic link.
type Dir struct {
	client     *Client
	handle     []byte
	filesystem [2]uint64
	// parent is the directory that this one was opened in, nil for the share.
	parent *Dir
	depth  int
}

// maxDepth is how many directories may lie in each other: more than any path
// can name.
const maxDepth = 8192

// child is a directory in d. A server that says that a directory lies in itself,
// at whatever depth, is not believed: what is done to the child would be done to
// what surrounds it.
func (d *Dir) child(name string, handle []byte, filesystem [2]uint64) (*Dir, error) {
	for above := d; above != nil; above = above.parent {
		if bytes.Equal(above.handle, handle) {
			return nil, fmt.Errorf("open %q: %w: the directory lies in itself", name, errGarbled)
		}
	}
	if d.depth == maxDepth {
		return nil, fmt.Errorf("open %q: %d directories lie in each other: %w", name, maxDepth, syscall.ENAMETOOLONG)
	}
	return &Dir{client: d.client, handle: handle, filesystem: filesystem, parent: d, depth: d.depth + 1}, nil
}

// checkName refuses what is no name of an entry.
func checkName(op, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return refused(op, name, syscall.EINVAL)
	}
	if len(name) > maxName {
		return refused(op, name, syscall.ENAMETOOLONG)
	}
	return nil
}

// begin checks the context and the names of a call.
func (d *Dir) begin(ctx context.Context, op string, names ...string) (context.Context, context.CancelFunc, error) {
	for _, name := range names {
		if err := checkName(op, name); err != nil {
			return ctx, func() {}, err
		}
	}
	ctx, cancel := d.client.bound(ctx)
	return ctx, cancel, ctx.Err()
}

// Stat describes the directory itself.
func (d *Dir) Stat(ctx context.Context) (Info, error) {
	ctx, cancel, err := d.begin(ctx, "stat")
	defer cancel()
	if err != nil {
		return Info{}, err
	}
	return d.client.protocol.getattr(ctx, d.handle)
}

// Lstat describes name; a symbolic link is a symbolic link.
func (d *Dir) Lstat(ctx context.Context, name string) (Info, error) {
	ctx, cancel, err := d.begin(ctx, "lstat", name)
	defer cancel()
	if err != nil {
		return Info{}, err
	}
	_, info, err := d.client.protocol.lookup(ctx, d.handle, name)
	return info, err
}

// Open opens the directory name. A symbolic link fails with syscall.ELOOP,
// anything else that is no directory with syscall.ENOTDIR, and a directory of
// another filesystem with ErrCrossesMount.
func (d *Dir) Open(ctx context.Context, name string) (*Dir, error) {
	ctx, cancel, err := d.begin(ctx, "open", name)
	defer cancel()
	if err != nil {
		return nil, err
	}
	handle, info, err := d.client.protocol.lookup(ctx, d.handle, name)
	switch {
	case err != nil:
		return nil, err
	case info.Type == fs.ModeSymlink:
		return nil, refused("open", name, syscall.ELOOP)
	case info.Type != fs.ModeDir:
		return nil, refused("open", name, syscall.ENOTDIR)
	case info.filesystem != d.filesystem:
		return nil, fmt.Errorf("open %q: %w", name, ErrCrossesMount)
	}
	return d.child(name, handle, info.filesystem)
}

// Mkdir makes the directory name. Servers leave setgid out, and may apply the
// directory's: use SetAttr afterwards when the mode matters.
func (d *Dir) Mkdir(ctx context.Context, name string, mode uint32) error {
	ctx, cancel, err := d.begin(ctx, "mkdir", name)
	defer cancel()
	if err != nil {
		return err
	}
	return d.client.protocol.mkdir(ctx, d.handle, name, mode&0o7777)
}

// Remove removes name, which must not be a directory: that fails with
// syscall.EISDIR.
func (d *Dir) Remove(ctx context.Context, name string) error {
	ctx, cancel, err := d.begin(ctx, "remove", name)
	defer cancel()
	if err != nil {
		return err
	}
	return d.client.protocol.remove(ctx, d.handle, name)
}

// Rmdir removes the empty directory name.
func (d *Dir) Rmdir(ctx context.Context, name string) error {
	ctx, cancel, err := d.begin(ctx, "rmdir", name)
	defer cancel()
	if err != nil {
		return err
	}
	return d.client.protocol.rmdir(ctx, d.handle, name)
}

// Rename moves name to newName in the directory to, and replaces what is there
// as rename(2) does.
func (d *Dir) Rename(ctx context.Context, name string, to *Dir, newName string) error {
	ctx, cancel, err := d.begin(ctx, "rename", name, newName)
	defer cancel()
	if err != nil {
		return err
	}
	if to.client != d.client {
		return refused("rename", name, syscall.EXDEV)
	}
	return d.client.protocol.rename(ctx, d.handle, name, to.handle, newName)
}

// SetAttr changes the directory itself, first its owners since that may clear
// bits of the mode.
func (d *Dir) SetAttr(ctx context.Context, attr SetAttr) error {
	ctx, cancel, err := d.begin(ctx, "setattr")
	defer cancel()
	if err != nil {
		return err
	}
	if attr.UID != nil || attr.GID != nil {
		if err := d.client.protocol.setattr(ctx, d.handle, nil, attr.UID, attr.GID); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	if attr.Mode != nil {
		if err := d.client.protocol.setattr(ctx, d.handle, attr.Mode, nil, nil); err != nil {
			var answer *Error
			if errors.As(err, &answer) && answer.Hint == hintSquash {
				answer.Hint = hintMode
			}
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return nil
}

// ReadDir yields the entries, without "." and "..", and ends after the first
// error. Each step to the server has Options.Timeout if ctx has no deadline. An
// error that wraps syscall.EAGAIN asks to begin again.
func (d *Dir) ReadDir(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var (
			from  position
			steps circle
		)
		for {
			part, err := d.readPage(ctx, from)
			if err == nil && !part.end && steps.closes(part.next) {
				err = fmt.Errorf("readdir: %w: the directory has no end", errGarbled)
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range part.entries {
				if e.Name == "." || e.Name == ".." {
					continue
				}
				if checkName("readdir", e.Name) != nil {
					yield(Entry{}, fmt.Errorf("%w: entry %q", errGarbled, e.Name))
					return
				}
				if !yield(e, nil) {
					return
				}
			}
			if part.end {
				return
			}
			from = part.next
		}
	}
}

// circle notices when a server sends a reader in a circle, without remembering
// all positions (Brent's algorithm): it keeps one, and a later one each time
// twice as many have gone by.
type circle struct {
	kept          position
	gone, keepFor int
}

func (c *circle) closes(next position) bool {
	if c.keepFor > 0 && next == c.kept {
		return true
	}
	if c.gone == c.keepFor {
		c.kept, c.gone, c.keepFor = next, 0, max(1, 2*c.keepFor)
	}
	c.gone++
	return false
}

func (d *Dir) readPage(ctx context.Context, from position) (*page, error) {
	ctx, cancel, err := d.begin(ctx, "readdir")
	defer cancel()
	if err != nil {
		return nil, err
	}
	part, err := d.client.protocol.readdir(ctx, d.handle, from)
	if err == nil && len(part.entries) == 0 && !part.end {
		return nil, fmt.Errorf("readdir: %w: neither entries nor an end", errGarbled)
	}
	return part, err
}

// ReadFile returns the content of the regular file name. It fails with
// ErrTooLarge when there are more than limit bytes, and with syscall.ELOOP or
// syscall.EINVAL for anything but a regular file.
func (d *Dir) ReadFile(ctx context.Context, name string, limit int64) (data []byte, err error) {
	ctx, cancel, err := d.begin(ctx, "read", name)
	defer cancel()
	if err != nil {
		return nil, err
	}
	for range replacedWhileRead {
		if data, err = d.readFile(ctx, name, limit); !errors.Is(err, syscall.ESTALE) {
			break
		}
	}
	return data, err
}

// replacedWhileRead bounds how often a file is read anew that was removed or replaced
// between two calls: by a call, perhaps, that its caller has given up.
const replacedWhileRead = 3

func (d *Dir) readFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	handle, info, data, end, err := d.client.protocol.readNamed(ctx, d.handle, name, chunkSize)
	switch {
	case err != nil:
		return nil, err
	case info.Type == fs.ModeSymlink:
		return nil, refused("read", name, syscall.ELOOP)
	case info.Type != 0:
		return nil, refused("read", name, syscall.EINVAL)
	}
	for chunk := data; ; data = append(data, chunk...) {
		switch {
		case int64(len(data)) > limit:
			return nil, fmt.Errorf("read %q: %w", name, ErrTooLarge)
		case end || len(chunk) == 0:
			return data, nil
		}
		if chunk, end, err = d.client.protocol.read(ctx, handle, uint64(len(data)), chunkSize); err != nil {
			return nil, fmt.Errorf("read %q: %w", name, err)
		}
	}
}

// WriteFile creates or replaces the file name, with mode 0600, atomically and
// durably. It writes a file whose name is tempPrefix and random letters, which a
// crash may leave behind.
func (d *Dir) WriteFile(ctx context.Context, name, tempPrefix string, data []byte) error {
	ctx, cancel, err := d.begin(ctx, "write", name)
	defer cancel()
	if err != nil {
		return err
	}
	temp := tempPrefix + rand.Text()
	if err := checkName("write", temp); err != nil {
		return err
	}
	p := d.client.protocol
	err = p.createFile(ctx, d.handle, temp, fileMode, data)
	if err == nil {
		err = p.rename(ctx, d.handle, temp, d.handle, name)
	}
	if err != nil {
		d.discard(ctx, temp)
		return fmt.Errorf("write %q: %w", name, err)
	}
	return nil
}

// discard removes a file that nobody needs, also for a caller who gave up.
func (d *Dir) discard(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = d.client.protocol.remove(ctx, d.handle, name)
}

// writeAll writes data in chunks, however little the server takes at a time.
func writeAll(data []byte, write func(offset uint64, chunk []byte) (int, error)) error {
	for offset := 0; offset < len(data); {
		chunk := data[offset:min(offset+chunkSize, len(data))]
		n, err := write(uint64(offset), chunk)
		if err != nil {
			return err
		}
		if n <= 0 || n > len(chunk) {
			return fmt.Errorf("write: %w: %d of %d bytes written", errGarbled, n, len(chunk))
		}
		offset += n
	}
	return nil
}

// removePasses is how often RemoveAll reads a directory that others fill.
const removePasses = 16

// RemoveAll removes name and all that is below it. It goes by handles and by
// what each entry is when it is removed, so it never leaves the tree through a
// symbolic link, and it stops at other filesystems with ErrCrossesMount. A name
// that does not exist is no error.
func (d *Dir) RemoveAll(ctx context.Context, name string) error {
	err := d.Remove(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, syscall.EISDIR) {
		return err
	}
	child, err := d.Open(ctx, name)
	if err != nil {
		return err
	}
	for range removePasses {
		if err = d.Rmdir(ctx, name); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
		if err := child.empty(ctx); err != nil && !errors.Is(err, syscall.EAGAIN) {
			return err
		}
	}
	return err
}

func (d *Dir) empty(ctx context.Context) error {
	for e, err := range d.ReadDir(ctx) {
		if err != nil {
			return err
		}
		if err := d.RemoveAll(ctx, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// typeOf translates the types of files, which versions 3 and 4 number alike.
func typeOf(number int32) fs.FileMode {
	switch number {
	case 1:
		return 0
	case 2:
		return fs.ModeDir
	case 3:
		return fs.ModeDevice
	case 4:
		return fs.ModeDevice | fs.ModeCharDevice
	case 5:
		return fs.ModeSymlink
	case 6:
		return fs.ModeSocket
	case 7:
		return fs.ModeNamedPipe
	default:
		return fs.ModeIrregular
	}
}
