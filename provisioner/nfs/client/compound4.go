package client

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// compound4 is COMPOUND4args. The generated type takes only operations of its
// own, and those refuse names that are not UTF-8.
type compound4 struct {
	minor      uint32
	operations []io.WriterTo
}

func (c compound4) WriteTo(w io.Writer) (int64, error) {
	head := words{0, c.minor, uint32(len(c.operations))} //nolint:gosec // a handful; the first word is an empty tag
	total, err := head.WriteTo(w)
	if err != nil {
		return total, err
	}
	n, err := sequence(c.operations).WriteTo(w)
	return total + n, err
}

// named4 is an operation whose arguments are names.
type named4 struct {
	operation nfsv4.NfsOpnum4
	names     []string
}

func (o named4) WriteTo(w io.Writer) (int64, error) {
	parts := sequence{o.operation}
	for _, name := range o.names {
		parts = append(parts, opaque(name))
	}
	return parts.WriteTo(w)
}

func lookup4(name string) named4 { return named4{nfsv4.OP_LOOKUP, []string{name}} }

func putfh4(handle []byte) io.WriterTo {
	return &nfsv4.NfsArgop4_OP_PUTFH{Opputfh: nfsv4.Putfh4args{Object: handle}}
}

func getattr4(bits []uint32) io.WriterTo {
	return &nfsv4.NfsArgop4_OP_GETATTR{Opgetattr: nfsv4.Getattr4args{AttrRequest: bits}}
}

// reply4 is COMPOUND4res.
type reply4 struct {
	status  nfsv4.Nfsstat4
	results []nfsv4.NfsResop4
	page    *page
}

// readReply4 reads the reply to at most a number of operations.
func readReply4(r *bytes.Reader, operations int) (*reply4, error) {
	reply := &reply4{}
	if _, err := reply.status.ReadFrom(r); err != nil {
		return nil, err
	}
	if _, _, err := runtime.ReadVariableLengthOpaque(r, maxMountPath); err != nil { // tag
		return nil, err
	}
	count, _, err := runtime.ReadUnsignedInt(r)
	if err != nil {
		return nil, err
	}
	if int64(count) > int64(operations) {
		return nil, fmt.Errorf("%d results of %d operations", count, operations)
	}
	for range count {
		if err := reply.readResult(r); err != nil {
			return nil, err
		}
	}
	if reply.status == nfsv4.NFS4_OK && int(count) != operations {
		return nil, fmt.Errorf("%d results of %d operations", count, operations)
	}
	return reply, nil
}

func (reply *reply4) readResult(r *bytes.Reader) error {
	number, n, err := runtime.ReadUnsignedInt(r)
	if err != nil {
		return err
	}
	if nfsv4.NfsOpnum4(number) == nfsv4.OP_READDIR { //nolint:gosec // a number for a number
		reply.page, err = readPage4(r)
		return err
	}
	if _, err := r.Seek(-n, io.SeekCurrent); err != nil {
		return err
	}
	result, _, err := nfsv4.ReadNfsResop4(r)
	reply.results = append(reply.results, result)
	return err
}

// result4 returns the last result of a kind.
func result4[R nfsv4.NfsResop4](reply *reply4) (R, error) {
	var found R
	missing := true
	for _, result := range reply.results {
		if r, is := result.(R); is {
			found, missing = r, false
		}
	}
	if missing {
		return found, fmt.Errorf("%w: no %T", errGarbled, found)
	}
	return found, nil
}

// readPage4 reads READDIR4res, one entry after the other and with names of any
// bytes.
func readPage4(r io.Reader) (*page, error) {
	p := &page{}
	var status nfsv4.Nfsstat4
	if _, err := status.ReadFrom(r); err != nil || status != nfsv4.NFS4_OK {
		return p, err
	}
	if _, err := runtime.ReadFixedLengthOpaque(r, p.next.verifier[:]); err != nil {
		return p, err
	}
	for {
		more, _, err := runtime.ReadBool(r)
		if err != nil {
			return p, err
		}
		if !more {
			p.end, _, err = runtime.ReadBool(r)
			return p, err
		}
		entry, err := readEntry4(r, p)
		if err != nil {
			return p, err
		}
		p.entries = append(p.entries, entry)
	}
}

func readEntry4(r io.Reader, p *page) (entry Entry, err error) {
	if p.next.cookie, _, err = runtime.ReadUnsignedHyper(r); err != nil {
		return Entry{}, err
	}
	name, _, err := runtime.ReadVariableLengthOpaque(r, maxName)
	if err != nil {
		return Entry{}, err
	}
	var encoded nfsv4.Fattr4
	if _, err := encoded.ReadFrom(r); err != nil {
		return Entry{}, err
	}
	a, err := parseAttributes4(&encoded)
	if err != nil {
		return Entry{}, err
	}
	entry = Entry{Name: string(name), Type: fs.ModeIrregular}
	if a.has(nfsv4.FATTR4_TYPE) {
		entry.Type = a.info.Type
	}
	return entry, nil
}
