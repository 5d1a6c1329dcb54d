package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"
)

const (
	// maxReply bounds what a server can make the client hold per call.
	maxReply = 1 << 20
	// lastFragment marks the last fragment of a record.
	lastFragment = 1 << 31
)

// errGarbled says that what came from a server can't be understood.
var errGarbled = errors.New("garbled reply")

// request is a remote procedure call.
type request struct {
	program, version, procedure uint32
	credential                  rpcv2.OpaqueAuth
	args                        io.WriterTo
	// again says that it changes nothing, or is recognised when it comes twice.
	again bool
}

// encode returns the call as a record.
func (r request) encode(xid uint32) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 4))
	message := rpcv2.RpcMsg{Xid: xid, Body: &rpcv2.RpcMsgBody_CALL{Cbody: rpcv2.CallBody{
		Rpcvers: 2, Prog: r.program, Vers: r.version, Proc: r.procedure, Cred: r.credential,
	}}}
	if _, err := message.WriteTo(&b); err != nil {
		return nil, err
	}
	if _, err := r.args.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("%w: %w", syscall.EINVAL, err)
	}
	if b.Len() > maxReply {
		return nil, fmt.Errorf("call of %d bytes: %w", b.Len(), syscall.EINVAL)
	}
	binary.BigEndian.PutUint32(b.Bytes(), uint32(b.Len()-4)|lastFragment) //nolint:gosec // bounded above
	return b.Bytes(), nil
}

// readRecord reads one record, of whatever fragments it is made.
func readRecord(r *bufio.Reader) ([]byte, error) {
	var record []byte
	for {
		var header [4]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return nil, err
		}
		mark := binary.BigEndian.Uint32(header[:])
		last, size := mark&lastFragment != 0, int(mark&^uint32(lastFragment))
		if size > maxReply-len(record) {
			return nil, fmt.Errorf("%w: more than %d bytes", errGarbled, maxReply)
		}
		if size == 0 && !last {
			return nil, fmt.Errorf("%w: empty fragment", errGarbled)
		}
		start := len(record)
		record = append(record, make([]byte, size)...)
		if _, err := io.ReadFull(r, record[start:]); err != nil {
			return nil, err
		}
		if last {
			return record, nil
		}
	}
}

// versionError says that the server does not speak a version of a program.
type versionError struct {
	program, version uint32
	unavailable      bool
}

func (e *versionError) Error() string {
	if e.unavailable {
		return fmt.Sprintf("the server does not offer program %d", e.program)
	}
	return fmt.Sprintf("the server does not speak version %d of program %d", e.version, e.program)
}

func (e *versionError) Unwrap() error { return syscall.EPROTONOSUPPORT }

// garbled is the error for a reply that can't be understood, of which err is a
// part: the server did something, and nobody knows what.
func garbled(r request, err error) error {
	return outcome(!r.again, fmt.Errorf("%w: %w", errGarbled, err))
}

// decodeReply returns the results of a call that the server accepted.
func decodeReply(record []byte, r request) (*bytes.Reader, error) {
	results := bytes.NewReader(record)
	var message rpcv2.RpcMsg
	if _, err := message.ReadFrom(results); err != nil {
		return nil, garbled(r, err)
	}
	body, ok := message.Body.(*rpcv2.RpcMsgBody_REPLY)
	if !ok {
		return nil, garbled(r, errors.New("a call"))
	}
	switch reply := body.Rbody.(type) {
	case *rpcv2.ReplyBody_MSG_ACCEPTED:
		switch stat := reply.Areply.ReplyData.GetStat(); stat {
		case rpcv2.SUCCESS:
			return results, nil
		case rpcv2.PROG_UNAVAIL, rpcv2.PROG_MISMATCH:
			return nil, &versionError{program: r.program, version: r.version, unavailable: stat == rpcv2.PROG_UNAVAIL}
		default:
			return nil, fmt.Errorf("procedure %d of program %d: %s: %w", r.procedure, r.program, rpcv2.AcceptStat_name[stat], syscall.EIO)
		}
	case *rpcv2.ReplyBody_MSG_DENIED:
		if denied, ok := reply.Rreply.(*rpcv2.RejectedReply_AUTH_ERROR); ok {
			return nil, fmt.Errorf("the server refuses AUTH_SYS for this export or from this port (%s): %s: %w",
				rpcv2.AuthStat_name[denied.Stat], hintInsecure, syscall.EACCES)
		}
	}
	return nil, fmt.Errorf("%w: denied", errGarbled)
}
