package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/buildbarn/go-xdr/pkg/protocols/mount"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// Programs, their versions and the procedures that lead to an export over
// version 3.
const (
	programPortmap, versionPortmap, procedureGetport = 100000, 2, 3
	programMount, versionMount, procedureMount       = 100005, 3, 1
	programNFS                                       = 100003

	portPortmap = 111
	portNFS     = 2049
	protocolTCP = 6

	maxMountPath = 1024
)

// opaque is a string of any bytes: go-xdr's own strings are ASCII or UTF-8.
type opaque string

func (o opaque) WriteTo(w io.Writer) (int64, error) {
	return runtime.WriteVariableLengthOpaque(w, maxMountPath, []byte(o))
}

// words are arguments that are unsigned integers.
type words []uint32

func (a words) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for _, word := range a {
		n, err := runtime.WriteUnsignedInt(w, word)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func joinPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// portOf asks the server's rpcbind where a program listens.
func portOf(ctx context.Context, rpcbind *transport, program, version uint32) (uint16, error) {
	r := request{program: programPortmap, version: versionPortmap, procedure: procedureGetport, again: true,
		args: words{program, version, protocolTCP, 0}}
	record, _, err := rpcbind.call(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("ask rpcbind: %w", err)
	}
	results, err := decodeReply(record, r)
	if err != nil {
		return 0, fmt.Errorf("ask rpcbind: %w", err)
	}
	port, _, err := runtime.ReadUnsignedInt(results)
	if err != nil {
		return 0, fmt.Errorf("ask rpcbind: %w: %w", errGarbled, err)
	}
	if port == 0 || port > 0xffff {
		return 0, fmt.Errorf("ask rpcbind: %w", &versionError{program: program, version: version})
	}
	return uint16(port), nil
}

// mountShare returns the handle of the share.
func (p *protocol3) mountShare(ctx context.Context) ([]byte, error) {
	r := request{program: programMount, version: versionMount, procedure: procedureMount, credential: p.credential, again: true,
		args: opaque(p.share)}
	record, _, err := p.mount.call(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", p.share, err)
	}
	results, err := decodeReply(record, r)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", p.share, err)
	}
	reply, _, err := mount.ReadMountres3(results)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w: %w", p.share, errGarbled, err)
	}
	if ok, is := reply.(*mount.Mountres3_MNT3_OK); is {
		return ok.Mountinfo.Fhandle, nil
	}
	status := reply.GetFhsStatus()
	refusal := newError("mount", p.share, uint32(status), mount.Mountstat3_name[status]) //nolint:gosec // a number for a number
	if refusal.Hint != "" {
		refusal.Hint = "the server does not export this to this machine, or not to this port: " + hintInsecure
	}
	return nil, refusal
}
