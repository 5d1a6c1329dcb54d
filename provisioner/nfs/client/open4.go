package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
)

// createAttempts is how often a file is made anew because the server forgot
// that it is open.
const createAttempts = 3

func (p *protocol4) createFile(ctx context.Context, dir []byte, name string, mode uint32, data []byte) error {
	for attempt := 1; ; attempt++ {
		s, err := p.current(ctx)
		if err != nil {
			return fmt.Errorf("create %q: %w", name, err)
		}
		err = p.createOnce(ctx, s, dir, name, mode, data)
		lost := hasStatus(err, statusesLost4...) || errors.Is(err, errStateLost)
		if !lost || attempt == createAttempts {
			return err
		}
		s.drop()
		if err := p.remove(ctx, dir, name); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
}

func (p *protocol4) createOnce(ctx context.Context, s *state4, dir []byte, name string, mode uint32, data []byte) error {
	file, err := p.open(ctx, s, dir, name, mode)
	if err != nil {
		return err
	}
	err = writeAll(data, func(offset uint64, chunk []byte) (int, error) { return file.write(ctx, offset, chunk) })
	return errors.Join(err, file.close(ctx))
}

// file4 is an open file. Version 4.0 numbers what its owner asks for.
type file4 struct {
	protocol *protocol4
	state    *state4
	name     string
	change   change
	handle   []byte
	id       nfsv4.Stateid4
	sequence uint32
}

// do makes a call that the owner of an open file numbers, and again for as long
// as the server asks for time; that takes a number each.
func (f *file4) do(ctx context.Context, op string, build func(sequence uint32) []io.WriterTo) (*reply4, error) {
	var wait backoff
	for {
		reply, err := f.protocol.within(ctx, f.state, f.change, build(f.sequence))
		if err != nil {
			return nil, failed(op, f.name, err)
		}
		if f.protocol.minor == 0 {
			f.sequence++
		}
		err = error4(op, f.name, reply.status)
		if !later4(reply.status) {
			return reply, err
		}
		if !wait.sleep(ctx) {
			return nil, busy(ctx, err)
		}
	}
}

// open creates the file name, which must not exist.
func (p *protocol4) open(ctx context.Context, s *state4, dir []byte, name string, mode uint32) (*file4, error) {
	attributes, err := attributesOf4(&mode, nil, nil)
	if err != nil {
		return nil, err
	}
	access := uint32(nfsv4.OPEN4_SHARE_ACCESS_WRITE)
	if p.minor == 1 {
		access |= nfsv4.OPEN4_SHARE_ACCESS_WANT_NO_DELEG
	}
	owner := nfsv4.StateOwner4{Clientid: s.clientID, Owner: []byte(rand.Text())}
	f := &file4{protocol: p, state: s, name: name, change: changes(dir, name)}
	reply, err := f.do(ctx, "create", func(sequence uint32) []io.WriterTo {
		return []io.WriterTo{putfh4(dir), &nfsv4.NfsArgop4_OP_OPEN{Opopen: nfsv4.Open4args{
			Seqid: sequence, ShareAccess: access, ShareDeny: nfsv4.OPEN4_SHARE_DENY_NONE, Owner: owner,
			Openhow: &nfsv4.Openflag4_OPEN4_CREATE{How: &nfsv4.Createhow4_GUARDED4{Createattrs: attributes}},
			Claim:   &nfsv4.OpenClaim4_CLAIM_NULL{File: name},
		}}, &nfsv4.NfsArgop4_OP_GETFH{}}
	})
	if err != nil {
		return nil, err
	}
	if f.handle, err = handleFrom4(reply); err != nil {
		return nil, err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_OPEN](reply)
	if err != nil {
		return nil, err
	}
	ok, is := result.Opopen.(*nfsv4.Open4res_NFS4_OK)
	if !is {
		return nil, errGarbled
	}
	f.id = ok.Resok4.Stateid
	if ok.Resok4.Rflags&nfsv4.OPEN4_RESULT_CONFIRM == 0 {
		return f, nil
	}
	return f, f.confirm(ctx)
}

// confirm tells a server of version 4.0 that the owner is no echo of the past.
func (f *file4) confirm(ctx context.Context) error {
	reply, err := f.do(ctx, "open_confirm", func(sequence uint32) []io.WriterTo {
		return []io.WriterTo{putfh4(f.handle), &nfsv4.NfsArgop4_OP_OPEN_CONFIRM{OpopenConfirm: nfsv4.OpenConfirm4args{OpenStateid: f.id, Seqid: sequence}}}
	})
	if err != nil {
		return err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_OPEN_CONFIRM](reply)
	if err != nil {
		return err
	}
	ok, is := result.OpopenConfirm.(*nfsv4.OpenConfirm4res_NFS4_OK)
	if !is {
		return errGarbled
	}
	f.id = ok.Resok4.OpenStateid
	return nil
}

// write returns how much is on stable storage.
func (f *file4) write(ctx context.Context, offset uint64, chunk []byte) (int, error) {
	reply, err := f.protocol.do(ctx, "write", f.name, f.change, putfh4(f.handle), &nfsv4.NfsArgop4_OP_WRITE{Opwrite: nfsv4.Write4args{
		Stateid: f.id, Offset: offset, Stable: nfsv4.FILE_SYNC4, Data: chunk,
	}})
	if err != nil {
		return 0, err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_WRITE](reply)
	if err != nil {
		return 0, err
	}
	ok, is := result.Opwrite.(*nfsv4.Write4res_NFS4_OK)
	if !is || ok.Resok4.Committed != nfsv4.FILE_SYNC4 {
		return 0, fmt.Errorf("write: the server did not make the data durable: %w", syscall.EIO)
	}
	return int(ok.Resok4.Count), nil
}

func (f *file4) close(ctx context.Context) error {
	_, err := f.do(ctx, "close", func(sequence uint32) []io.WriterTo {
		return []io.WriterTo{putfh4(f.handle), &nfsv4.NfsArgop4_OP_CLOSE{Opclose: nfsv4.Close4args{Seqid: sequence, OpenStateid: f.id}}}
	})
	return err
}
