package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv3"
	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// protocol3 is NFS version 3.
type protocol3 struct {
	nfs, mount *transport
	credential rpcv2.OpaqueAuth
	share      string
	fence      fence
}

// newProtocol3 finds the server's ports and mounts the share.
func newProtocol3(ctx context.Context, pool *Pool, o Options, credential rpcv2.OpaqueAuth) (*protocol3, []byte, error) {
	port, mountPort := o.Port, o.MountPort
	rpcbind := pool.transport(joinPort(o.Server, portPortmap), true)
	var err error
	if mountPort == 0 {
		if mountPort, err = portOf(ctx, rpcbind, programMount, versionMount); err != nil {
			return nil, nil, err
		}
	}
	if port == 0 {
		if port, err = portOf(ctx, rpcbind, programNFS, 3); err != nil {
			return nil, nil, err
		}
	}
	p := &protocol3{
		nfs:        pool.transport(joinPort(o.Server, port), o.UnprivilegedPort),
		mount:      pool.transport(joinPort(o.Server, mountPort), o.UnprivilegedPort),
		credential: credential,
		share:      o.Share,
	}
	root, err := p.root(ctx)
	return p, root, err
}

// procedure3 describes a procedure.
type procedure3 struct {
	number uint32
	name   string
}

var (
	getattr3 = procedure3{1, "getattr"}
	setattr3 = procedure3{2, "setattr"}
	lookup3  = procedure3{3, "lookup"}
	read3    = procedure3{6, "read"}
	write3   = procedure3{7, "write"}
	create3  = procedure3{8, "create"}
	mkdir3   = procedure3{9, "mkdir"}
	remove3  = procedure3{12, "remove"}
	rmdir3   = procedure3{13, "rmdir"}
	rename3  = procedure3{14, "rename"}
	readdir3 = procedure3{17, "readdir"}
	fsstat3  = procedure3{18, "fsstat"}
)

// reply3 is what every reply of version 3 has.
type reply3 interface{ GetStatus() nfsv3.Nfsstat3 }

// call3 makes a call, and again for as long as the server asks for time.
func call3[R reply3](ctx context.Context, p *protocol3, procedure procedure3, name string, c change, args io.WriterTo, read func(io.Reader) (R, int64, error)) (R, error) {
	var wait backoff
	for {
		reply, err := once3(ctx, p, procedure, c, args, read)
		if err != nil {
			return reply, failed(procedure.name, name, err)
		}
		err = error3(procedure.name, name, reply.GetStatus())
		if reply.GetStatus() != nfsv3.NFS3ERR_JUKEBOX {
			return reply, err
		}
		if !wait.sleep(ctx) {
			return reply, busy(ctx, err)
		}
	}
}

func once3[R reply3](ctx context.Context, p *protocol3, procedure procedure3, c change, args io.WriterTo, read func(io.Reader) (R, int64, error)) (reply R, err error) {
	r := request{program: programNFS, version: 3, procedure: procedure.number, credential: p.credential, args: args, again: c == nil}
	if err := p.fence.pass(ctx, c, p.nfs.options.AnswerTimeout); err != nil {
		return reply, err
	}
	record, late, err := p.nfs.call(ctx, r)
	if late != nil {
		p.fence.awaitLate(c, late)
	}
	if err != nil {
		return reply, err
	}
	results, err := decodeReply(record, r)
	if err != nil {
		return reply, err
	}
	if reply, _, err = read(results); err != nil {
		err = garbled(r, err)
	}
	return reply, err
}

// where3 is diropargs3. The generated type refuses names that are not ASCII.
type where3 struct {
	dir  []byte
	name string
}

func (a where3) WriteTo(w io.Writer) (int64, error) {
	total, err := runtime.WriteVariableLengthOpaque(w, nfsv3.NFS3_FHSIZE, a.dir)
	if err != nil {
		return total, err
	}
	n, err := runtime.WriteVariableLengthOpaque(w, maxName, []byte(a.name))
	return total + n, err
}

// sequence is arguments one after the other.
type sequence []io.WriterTo

func (s sequence) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for _, part := range s {
		n, err := part.WriteTo(w)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func handle3(handle []byte) nfsv3.NfsFh3 { return nfsv3.NfsFh3{Data: handle} }

// attributes3 sets what is not nil.
func attributes3(mode, uid, gid *uint32) *nfsv3.Sattr3 {
	a := &nfsv3.Sattr3{
		Mode: &nfsv3.SetMode3_default{}, Uid: &nfsv3.SetUid3_default{}, Gid: &nfsv3.SetGid3_default{}, Size: &nfsv3.SetSize3_default{},
		Atime: &nfsv3.SetAtime_default{SetIt: nfsv3.DONT_CHANGE}, Mtime: &nfsv3.SetMtime_default{SetIt: nfsv3.DONT_CHANGE},
	}
	if mode != nil {
		a.Mode = &nfsv3.SetMode3_TRUE{Mode: *mode}
	}
	if uid != nil {
		a.Uid = &nfsv3.SetUid3_TRUE{Uid: *uid}
	}
	if gid != nil {
		a.Gid = &nfsv3.SetGid3_TRUE{Gid: *gid}
	}
	return a
}

func info3(a *nfsv3.Fattr3) Info {
	return Info{Type: type3(a.Type), Mode: a.Mode & 0o7777, UID: a.Uid, GID: a.Gid, Size: a.Size, filesystem: [2]uint64{a.Fsid}}
}

func type3(t nfsv3.Ftype3) fs.FileMode {
	// Version 4 numbers them the same.
	return typeOf(int32(t))
}

func (p *protocol3) root(ctx context.Context) ([]byte, error) { return p.mountShare(ctx) }

func (p *protocol3) getattr(ctx context.Context, handle []byte) (Info, error) {
	reply, err := call3(ctx, p, getattr3, "", nil, &nfsv3.Getattr3args{Object: handle3(handle)}, nfsv3.ReadGetattr3res)
	if err != nil {
		return Info{}, err
	}
	ok, is := reply.(*nfsv3.Getattr3res_NFS3_OK)
	if !is {
		return Info{}, errGarbled
	}
	return info3(&ok.Resok.ObjAttributes), nil
}

func (p *protocol3) lookup(ctx context.Context, dir []byte, name string) ([]byte, Info, error) {
	reply, err := call3(ctx, p, lookup3, name, nil, where3{dir, name}, nfsv3.ReadLookup3res)
	if err != nil {
		return nil, Info{}, err
	}
	ok, is := reply.(*nfsv3.Lookup3res_NFS3_OK)
	if !is {
		return nil, Info{}, errGarbled
	}
	handle := ok.Resok.Object.Data
	if a, is := ok.Resok.ObjAttributes.(*nfsv3.PostOpAttr_TRUE); is {
		return handle, info3(&a.Attributes), nil
	}
	info, err := p.getattr(ctx, handle)
	return handle, info, err
}

func (p *protocol3) mkdir(ctx context.Context, dir []byte, name string, mode uint32) error {
	_, err := call3(ctx, p, mkdir3, name, changes(dir, name), sequence{where3{dir, name}, attributes3(&mode, nil, nil)}, nfsv3.ReadMkdir3res)
	return err
}

// remove leaves it to the server to refuse a directory, which not all do with
// the same status.
func (p *protocol3) remove(ctx context.Context, dir []byte, name string) error {
	_, err := call3(ctx, p, remove3, name, changes(dir, name), where3{dir, name}, nfsv3.ReadRemove3res)
	if hasStatus(err, uint32(nfsv3.NFS3ERR_PERM), uint32(nfsv3.NFS3ERR_ACCES), uint32(nfsv3.NFS3ERR_INVAL), uint32(nfsv3.NFS3ERR_EXIST), uint32(nfsv3.NFS3ERR_NOTEMPTY)) {
		if _, info, lookup := p.lookup(ctx, dir, name); lookup == nil && info.Type == fs.ModeDir {
			return refused("remove", name, syscall.EISDIR)
		}
	}
	return err
}

func (p *protocol3) rmdir(ctx context.Context, dir []byte, name string) error {
	_, err := call3(ctx, p, rmdir3, name, changes(dir, name), where3{dir, name}, nfsv3.ReadRmdir3res)
	if hasStatus(err, uint32(nfsv3.NFS3ERR_EXIST)) { // what POSIX allows instead
		return refused("rmdir", name, syscall.ENOTEMPTY)
	}
	return err
}

func (p *protocol3) rename(ctx context.Context, from []byte, name string, to []byte, newName string) error {
	_, err := call3(ctx, p, rename3, name, append(changes(from, name), changes(to, newName)...), sequence{where3{from, name}, where3{to, newName}}, nfsv3.ReadRename3res)
	return err
}

func (p *protocol3) setattr(ctx context.Context, handle []byte, mode, uid, gid *uint32) error {
	args := &nfsv3.Setattr3args{Object: handle3(handle), NewAttributes: *attributes3(mode, uid, gid), Guard: &nfsv3.Sattrguard3_FALSE{}}
	_, err := call3(ctx, p, setattr3, "", changes(handle, ""), args, nfsv3.ReadSetattr3res)
	return err
}

func (p *protocol3) space(ctx context.Context, handle []byte) (Space, error) {
	reply, err := call3(ctx, p, fsstat3, "", nil, &nfsv3.Fsstat3args{Fsroot: handle3(handle)}, nfsv3.ReadFsstat3res)
	if err != nil {
		return Space{}, err
	}
	ok, is := reply.(*nfsv3.Fsstat3res_NFS3_OK)
	if !is {
		return Space{}, errGarbled
	}
	return Space{Total: ok.Resok.Tbytes, Free: ok.Resok.Abytes, TotalFiles: ok.Resok.Tfiles, FreeFiles: ok.Resok.Afiles}, nil
}

func (p *protocol3) read(ctx context.Context, handle []byte, offset uint64, count uint32) ([]byte, bool, error) {
	reply, err := call3(ctx, p, read3, "", nil, &nfsv3.Read3args{File: handle3(handle), Offset: offset, Count: count}, nfsv3.ReadRead3res)
	if err != nil {
		return nil, false, err
	}
	ok, is := reply.(*nfsv3.Read3res_NFS3_OK)
	if !is || len(ok.Resok.Data) > int(count) {
		return nil, false, errGarbled
	}
	return ok.Resok.Data, ok.Resok.Eof, nil
}

func (p *protocol3) readNamed(ctx context.Context, dir []byte, name string, count uint32) ([]byte, Info, []byte, bool, error) {
	handle, info, err := p.lookup(ctx, dir, name)
	if err != nil || info.Type != 0 {
		return handle, info, nil, false, err
	}
	data, end, err := p.read(ctx, handle, 0, count)
	return handle, info, data, end, err
}

func (p *protocol3) createFile(ctx context.Context, dir []byte, name string, mode uint32, data []byte) error {
	var verifier [nfsv3.NFS3_CREATEVERFSIZE]byte
	if _, err := rand.Read(verifier[:]); err != nil {
		return err
	}
	reply, err := call3(ctx, p, create3, name, changes(dir, name), sequence{where3{dir, name}, &nfsv3.Createhow3_EXCLUSIVE{Verf: verifier}}, nfsv3.ReadCreate3res)
	if err != nil {
		return err
	}
	ok, is := reply.(*nfsv3.Create3res_NFS3_OK)
	if !is {
		return errGarbled
	}
	var handle []byte
	if h, is := ok.Resok.Obj.(*nfsv3.PostOpFh3_TRUE); is {
		handle = h.Handle.Data
	} else if handle, _, err = p.lookup(ctx, dir, name); err != nil {
		return err
	}
	// An exclusive create can't carry attributes.
	if err := p.setattr(ctx, handle, &mode, nil, nil); err != nil {
		return err
	}
	return writeAll(data, func(offset uint64, chunk []byte) (int, error) { return p.write(ctx, handle, offset, chunk) })
}

// write returns how much is on stable storage.
func (p *protocol3) write(ctx context.Context, handle []byte, offset uint64, chunk []byte) (int, error) {
	args := &nfsv3.Write3args{File: handle3(handle), Offset: offset, Count: uint32(len(chunk)), Stable: nfsv3.FILE_SYNC, Data: chunk} //nolint:gosec // a chunk is small
	reply, err := call3(ctx, p, write3, "", changes(handle, ""), args, nfsv3.ReadWrite3res)
	if err != nil {
		return 0, err
	}
	ok, is := reply.(*nfsv3.Write3res_NFS3_OK)
	if !is || ok.Resok.Committed != nfsv3.FILE_SYNC {
		return 0, fmt.Errorf("write: the server did not make the data durable: %w", syscall.EIO)
	}
	return int(ok.Resok.Count), nil
}

func (p *protocol3) close(context.Context) error { return nil }
