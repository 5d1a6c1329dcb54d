package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"
)

// protocol4 is NFS version 4.0 or 4.1. In each compound the operation that
// changes something is the last that can fail, so that a status always speaks
// of it.
type protocol4 struct {
	nfs        *transport
	credential rpcv2.OpaqueAuth
	minor      uint32
	share      string
	owner      []byte

	making chan struct{} // held, by what it holds, by who makes a state
	state  atomic.Pointer[state4]
	fence  fence
}

func newProtocol4(ctx context.Context, pool *Pool, o Options, credential rpcv2.OpaqueAuth, version Version) (*protocol4, []byte, error) {
	port := o.Port
	if port == 0 {
		port = portNFS
	}
	p := &protocol4{
		nfs:        pool.transport(joinPort(o.Server, port), o.UnprivilegedPort),
		credential: credential,
		share:      o.Share,
		owner:      []byte("berth-" + rand.Text()),
		making:     make(chan struct{}, 1),
	}
	if version == Version41 {
		p.minor = 1
	}
	root, err := p.root(ctx)
	return p, root, unsupported4(err)
}

// do makes a call, and again for as long as the server asks for time.
func (p *protocol4) do(ctx context.Context, op, name string, c change, operations ...io.WriterTo) (*reply4, error) {
	var wait backoff
	for {
		reply, err := p.once(ctx, c, operations)
		if err != nil && !errors.Is(err, errStateLost) && !errors.Is(err, errMistaken) {
			return nil, failed(op, name, err)
		}
		if err == nil {
			err = error4(op, name, reply.status)
			if !later4(reply.status) {
				return reply, err
			}
		}
		if !wait.sleep(ctx) {
			return nil, busy(ctx, err)
		}
	}
}

func later4(status nfsv4.Nfsstat4) bool {
	return status == nfsv4.NFS4ERR_DELAY || status == nfsv4.NFS4ERR_GRACE
}

// once makes a call. Version 4.0 needs a state only to open files.
func (p *protocol4) once(ctx context.Context, c change, operations []io.WriterTo) (*reply4, error) {
	if err := p.fence.pass(ctx, c, p.nfs.options.AnswerTimeout); err != nil {
		return nil, err
	}
	if p.minor == 0 {
		return p.plain(ctx, c, operations...)
	}
	s, err := p.current(ctx)
	if err != nil {
		return nil, err
	}
	return p.within(ctx, s, c, operations)
}

func attributesFrom4(reply *reply4) (*attributes4, error) {
	result, err := result4[*nfsv4.NfsResop4_OP_GETATTR](reply)
	if err != nil {
		return nil, err
	}
	ok, is := result.Opgetattr.(*nfsv4.Getattr4res_NFS4_OK)
	if !is {
		return nil, errGarbled
	}
	return parseAttributes4(&ok.Resok4.ObjAttributes)
}

func infoFrom4(reply *reply4) (Info, error) {
	a, err := attributesFrom4(reply)
	if err != nil {
		return Info{}, err
	}
	if !a.has(nfsv4.FATTR4_TYPE) || !a.has(nfsv4.FATTR4_FSID) || !a.has(nfsv4.FATTR4_MODE) {
		return Info{}, fmt.Errorf("%w: attributes are missing", errGarbled)
	}
	return a.info, nil
}

func handleFrom4(reply *reply4) ([]byte, error) {
	result, err := result4[*nfsv4.NfsResop4_OP_GETFH](reply)
	if err != nil {
		return nil, err
	}
	ok, is := result.Opgetfh.(*nfsv4.Getfh4res_NFS4_OK)
	if !is {
		return nil, errGarbled
	}
	return ok.Resok4.Object, nil
}

func (p *protocol4) root(ctx context.Context) ([]byte, error) {
	operations := []io.WriterTo{&nfsv4.NfsArgop4_OP_PUTROOTFH{}}
	for component := range strings.SplitSeq(p.share, "/") {
		if component != "" {
			operations = append(operations, lookup4(component))
		}
	}
	reply, err := p.do(ctx, "mount", p.share, nil, append(operations, &nfsv4.NfsArgop4_OP_GETFH{})...)
	if err != nil {
		var refusal *Error
		if errors.As(err, &refusal) && (refusal.Errno == syscall.ENOENT || refusal.Errno == syscall.EACCES || refusal.Errno == syscall.EPERM) {
			refusal.Hint = "the server does not export this, or hides it from this machine or this port: " + hintInsecure
		}
		return nil, err
	}
	return handleFrom4(reply)
}

func (p *protocol4) getattr(ctx context.Context, handle []byte) (Info, error) {
	reply, err := p.do(ctx, "getattr", "", nil, putfh4(handle), getattr4(infoBits4))
	if err != nil {
		return Info{}, err
	}
	return infoFrom4(reply)
}

func (p *protocol4) lookup(ctx context.Context, dir []byte, name string) ([]byte, Info, error) {
	reply, err := p.do(ctx, "lookup", name, nil, putfh4(dir), lookup4(name), &nfsv4.NfsArgop4_OP_GETFH{}, getattr4(infoBits4))
	if err != nil {
		return nil, Info{}, err
	}
	handle, err := handleFrom4(reply)
	if err != nil {
		return nil, Info{}, err
	}
	info, err := infoFrom4(reply)
	return handle, info, err
}

func (p *protocol4) mkdir(ctx context.Context, dir []byte, name string, mode uint32) error {
	attributes, err := attributesOf4(&mode, nil, nil)
	if err != nil {
		return err
	}
	_, err = p.do(ctx, "mkdir", name, changes(dir, name), putfh4(dir), &nfsv4.NfsArgop4_OP_CREATE{Opcreate: nfsv4.Create4args{
		Objtype: &nfsv4.Createtype4_NF4DIR{}, Objname: name, Createattrs: attributes,
	}})
	return err
}

// remove asks the server to look, in the same call, whether name is a
// directory: REMOVE takes those too.
func (p *protocol4) remove(ctx context.Context, dir []byte, name string) error {
	_, err := p.do(ctx, "remove", name, changes(dir, name), putfh4(dir), lookup4(name),
		&nfsv4.NfsArgop4_OP_NVERIFY{Opnverify: nfsv4.Nverify4args{ObjAttributes: directory4()}},
		putfh4(dir), named4{nfsv4.OP_REMOVE, []string{name}})
	if hasStatus(err, uint32(nfsv4.NFS4ERR_SAME)) {
		return refused("remove", name, syscall.EISDIR)
	}
	return err
}

func (p *protocol4) rmdir(ctx context.Context, dir []byte, name string) error {
	_, err := p.do(ctx, "rmdir", name, changes(dir, name), putfh4(dir), lookup4(name),
		&nfsv4.NfsArgop4_OP_VERIFY{Opverify: nfsv4.Verify4args{ObjAttributes: directory4()}},
		putfh4(dir), named4{nfsv4.OP_REMOVE, []string{name}})
	switch {
	case hasStatus(err, uint32(nfsv4.NFS4ERR_NOT_SAME)):
		return refused("rmdir", name, syscall.ENOTDIR)
	case hasStatus(err, uint32(nfsv4.NFS4ERR_EXIST)): // what POSIX allows instead
		return refused("rmdir", name, syscall.ENOTEMPTY)
	}
	return err
}

func (p *protocol4) rename(ctx context.Context, from []byte, name string, to []byte, newName string) error {
	_, err := p.do(ctx, "rename", name, append(changes(from, name), changes(to, newName)...),
		putfh4(from), &nfsv4.NfsArgop4_OP_SAVEFH{}, putfh4(to), named4{nfsv4.OP_RENAME, []string{name, newName}})
	return err
}

func (p *protocol4) readdir(ctx context.Context, dir []byte, from position) (*page, error) {
	reply, err := p.do(ctx, "readdir", "", nil, putfh4(dir), &nfsv4.NfsArgop4_OP_READDIR{Opreaddir: nfsv4.Readdir4args{
		Cookie: from.cookie, Cookieverf: from.verifier, Dircount: pageSize / 4, Maxcount: pageSize, AttrRequest: entryBits4,
	}})
	if err != nil {
		return nil, err
	}
	if reply.page == nil {
		return nil, errGarbled
	}
	return reply.page, nil
}

func (p *protocol4) setattr(ctx context.Context, handle []byte, mode, uid, gid *uint32) error {
	attributes, err := attributesOf4(mode, uid, gid)
	if err != nil {
		return err
	}
	_, err = p.do(ctx, "setattr", "", changes(handle, ""), putfh4(handle), &nfsv4.NfsArgop4_OP_SETATTR{Opsetattr: nfsv4.Setattr4args{ObjAttributes: attributes}})
	return err
}

func (p *protocol4) space(ctx context.Context, handle []byte) (Space, error) {
	reply, err := p.do(ctx, "fsstat", "", nil, putfh4(handle), getattr4(spaceBits4))
	if err != nil {
		return Space{}, err
	}
	a, err := attributesFrom4(reply)
	if err != nil {
		return Space{}, err
	}
	if !a.has(nfsv4.FATTR4_SPACE_TOTAL) || !a.has(nfsv4.FATTR4_SPACE_AVAIL) {
		return Space{}, fmt.Errorf("the server does not tell its space: %w", syscall.EOPNOTSUPP)
	}
	return a.space, nil
}

// read needs no open file: it carries the anonymous state id.
func (p *protocol4) read(ctx context.Context, handle []byte, offset uint64, count uint32) ([]byte, bool, error) {
	reply, err := p.do(ctx, "read", "", nil, putfh4(handle), read4(offset, count))
	if err != nil {
		return nil, false, err
	}
	return dataFrom4(reply, count)
}

// readNamed takes one call. What is no regular file can't be read, but is
// described before the server says so.
func (p *protocol4) readNamed(ctx context.Context, dir []byte, name string, count uint32) ([]byte, Info, []byte, bool, error) {
	reply, err := p.do(ctx, "read", name, nil, putfh4(dir), lookup4(name), &nfsv4.NfsArgop4_OP_GETFH{}, getattr4(infoBits4), read4(0, count))
	if reply == nil {
		return nil, Info{}, nil, false, err
	}
	if info, described := infoFrom4(reply); described == nil && info.Type != 0 {
		return nil, info, nil, false, nil
	}
	if err != nil {
		return nil, Info{}, nil, false, err
	}
	handle, err := handleFrom4(reply)
	if err != nil {
		return nil, Info{}, nil, false, err
	}
	info, err := infoFrom4(reply)
	if err != nil {
		return nil, Info{}, nil, false, err
	}
	data, end, err := dataFrom4(reply, count)
	return handle, info, data, end, err
}

func read4(offset uint64, count uint32) *nfsv4.NfsArgop4_OP_READ {
	return &nfsv4.NfsArgop4_OP_READ{Opread: nfsv4.Read4args{Offset: offset, Count: count}}
}

func dataFrom4(reply *reply4, count uint32) ([]byte, bool, error) {
	result, err := result4[*nfsv4.NfsResop4_OP_READ](reply)
	if err != nil {
		return nil, false, err
	}
	ok, is := result.Opread.(*nfsv4.Read4res_NFS4_OK)
	if !is || len(ok.Resok4.Data) > int(count) {
		return nil, false, errGarbled
	}
	return ok.Resok4.Data, ok.Resok4.Eof, nil
}

// close ends the session.
func (p *protocol4) close(ctx context.Context) error {
	if s := p.state.Load(); s != nil && s.life.Err() == nil {
		s.drop()
		p.destroy(ctx, s)
	}
	return nil
}
