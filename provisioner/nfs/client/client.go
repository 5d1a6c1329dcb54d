package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Version is a version of the protocol.
type Version string

// The versions. VersionAuto takes the first, of 4.1, 4.0 and 3, in which the
// server knows the share: it may name it differently in version 3.
const (
	VersionAuto Version = ""
	Version41   Version = "4.1"
	Version40   Version = "4.0"
	Version3    Version = "3"
)

// Options say which share to use and as whom.
type Options struct {
	// Server is a host name or an address, without a port.
	Server string
	// Port is where the server speaks NFS. 0 is 2049, or what its rpcbind says
	// for version 3.
	Port uint16
	// MountPort is where mountd listens, for version 3. 0 asks rpcbind.
	MountPort uint16
	// Share is the absolute path of the export or of a directory in it.
	Share string
	// Version is the version to speak.
	Version Version
	// UID, GID and Groups are whom the server takes the caller for, unless it
	// squashes them. At most 16 groups.
	UID, GID uint32
	Groups   []uint32
	// UnprivilegedPort leaves ports below 1024 alone. Otherwise one is the
	// source of each connection if this process may bind it.
	UnprivilegedPort bool
	// Timeout ends calls whose context has no deadline. The default is a minute.
	Timeout time.Duration
	// Pool shares connections with other clients. The default is a pool of its
	// own, which Close closes.
	Pool *Pool
}

// protocol is what a version of NFS does. Names are checked by the caller.
type protocol interface {
	root(ctx context.Context) ([]byte, error)
	getattr(ctx context.Context, handle []byte) (Info, error)
	lookup(ctx context.Context, dir []byte, name string) ([]byte, Info, error)
	mkdir(ctx context.Context, dir []byte, name string, mode uint32) error
	remove(ctx context.Context, dir []byte, name string) error
	rmdir(ctx context.Context, dir []byte, name string) error
	rename(ctx context.Context, from []byte, name string, to []byte, newName string) error
	readdir(ctx context.Context, dir []byte, from position) (*page, error)
	setattr(ctx context.Context, handle []byte, mode, uid, gid *uint32) error
	space(ctx context.Context, handle []byte) (Space, error)
	read(ctx context.Context, handle []byte, offset uint64, count uint32) (data []byte, end bool, err error)
	// readNamed is lookup and, for a regular file, read from the beginning.
	readNamed(ctx context.Context, dir []byte, name string, count uint32) (handle []byte, info Info, data []byte, end bool, err error)
	createFile(ctx context.Context, dir []byte, name string, mode uint32, data []byte) error
	close(ctx context.Context) error
}

// Client uses one share of one server. Its methods may be called by several
// goroutines at once.
type Client struct {
	options  Options
	version  Version
	protocol protocol
	pool     *Pool
	ownPool  bool

	mu   sync.Mutex
	root []byte
}

// Dial connects to a server and finds the share.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	c := &Client{options: o, pool: o.Pool}
	if c.pool == nil {
		c.pool, c.ownPool = NewPool(PoolOptions{}), true
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		if c.ownPool {
			c.pool.Close()
		}
		return nil, fmt.Errorf("NFS share %s:%s: %w", o.Server, o.Share, err)
	}
	return c, nil
}

func (o *Options) check() error {
	switch {
	case o.Server == "" || strings.ContainsAny(o.Server, "/\x00 "):
		return fmt.Errorf("NFS server %q: not a host: %w", o.Server, syscall.EINVAL)
	case !path.IsAbs(o.Share) || path.Clean(o.Share) != o.Share || strings.ContainsRune(o.Share, 0) || len(o.Share) > maxMountPath:
		return fmt.Errorf("NFS share %q: not a clean absolute path: %w", o.Share, syscall.EINVAL)
	case len(o.Groups) > 16:
		return fmt.Errorf("%d groups, AUTH_SYS carries 16: %w", len(o.Groups), syscall.EINVAL)
	}
	return nil
}

func (c *Client) connect(ctx context.Context) error {
	candidates := []Version{c.options.Version}
	if c.options.Version == VersionAuto {
		candidates = []Version{Version41, Version40, Version3}
	}
	var refusal error
	for _, version := range candidates {
		err := c.speak(ctx, version)
		switch {
		case err == nil:
			c.version = version
			return nil
		case errors.Is(refusal, fs.ErrNotExist): // says more than what follows
		case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, fs.ErrNotExist):
			refusal = err
		default:
			return err
		}
	}
	return refusal
}

func (c *Client) speak(ctx context.Context, version Version) error {
	credential, err := authSys(c.options.UID, c.options.GID, c.options.Groups)
	if err != nil {
		return err
	}
	switch version {
	case Version3:
		c.protocol, c.root, err = newProtocol3(ctx, c.pool, c.options, credential)
	case Version40, Version41:
		c.protocol, c.root, err = newProtocol4(ctx, c.pool, c.options, credential, version)
	default:
		return fmt.Errorf("NFS version %q: %w", version, syscall.EINVAL)
	}
	return err
}

// bound gives ctx a deadline.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.options.Timeout, timeoutError{c.options.Timeout})
}

// Version is the version in use.
func (c *Client) Version() Version { return c.version }

// Root opens the share. It fails with an error that wraps fs.ErrNotExist when
// the server has no such directory.
func (c *Client) Root(ctx context.Context) (*Dir, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	c.mu.Lock()
	handle := c.root
	c.mu.Unlock()
	info, err := c.protocol.getattr(ctx, handle)
	if errors.Is(err, syscall.ESTALE) {
		// The server was set up anew, or the directory was made again.
		if handle, err = c.protocol.root(ctx); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.root = handle
		c.mu.Unlock()
		info, err = c.protocol.getattr(ctx, handle)
	}
	if err != nil {
		return nil, err
	}
	if info.Type != fs.ModeDir {
		return nil, refused("open", c.options.Share, syscall.ENOTDIR)
	}
	return &Dir{client: c, handle: handle, filesystem: info.filesystem}, nil
}

// Space describes the filesystem that holds the share.
func (c *Client) Space(ctx context.Context) (Space, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	root, err := c.Root(ctx)
	if err != nil {
		return Space{}, err
	}
	return c.protocol.space(ctx, root.handle)
}

// closeTimeout bounds how long Close talks to a server that may be gone.
const closeTimeout = 2 * time.Second

// Close gives up what the server holds for this client, and the connections if
// no pool was given.
func (c *Client) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := c.protocol.close(ctx)
	if c.ownPool {
		c.pool.Close()
	}
	return err
}
