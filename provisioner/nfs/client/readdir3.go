package client

import (
	"context"
	"io"
	"io/fs"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv3"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// pageSize is how much of a directory is asked for, and held, at once.
const pageSize = 64 << 10

// position is where to go on in a directory.
type position struct {
	cookie   uint64
	verifier [8]byte
}

// page is a part of a directory.
type page struct {
	status  nfsv3.Nfsstat3
	entries []Entry
	next    position
	end     bool
}

func (p *page) GetStatus() nfsv3.Nfsstat3 { return p.status }

func (p *protocol3) readdir(ctx context.Context, dir []byte, from position) (*page, error) {
	args := &nfsv3.Readdirplus3args{Dir: handle3(dir), Cookie: from.cookie, Cookieverf: from.verifier, Dircount: pageSize / 4, Maxcount: pageSize}
	return call3(ctx, p, readdir3, "", nil, args, readPage3)
}

// readPage3 reads READDIRPLUS3res. The generated type refuses names that are
// not ASCII, which any tenant may create, and recurses for every entry.
func readPage3(r io.Reader) (*page, int64, error) {
	p := &page{}
	if _, err := p.status.ReadFrom(r); err != nil {
		return p, 0, err
	}
	if _, _, err := nfsv3.ReadPostOpAttr(r); err != nil || p.status != nfsv3.NFS3_OK {
		return p, 0, err
	}
	if _, err := runtime.ReadFixedLengthOpaque(r, p.next.verifier[:]); err != nil {
		return p, 0, err
	}
	for {
		more, _, err := runtime.ReadBool(r)
		if err != nil {
			return p, 0, err
		}
		if !more {
			p.end, _, err = runtime.ReadBool(r)
			return p, 0, err
		}
		entry, err := readEntry3(r, p)
		if err != nil {
			return p, 0, err
		}
		p.entries = append(p.entries, entry)
	}
}

func readEntry3(r io.Reader, p *page) (Entry, error) {
	if _, _, err := runtime.ReadUnsignedHyper(r); err != nil { // fileid
		return Entry{}, err
	}
	name, _, err := runtime.ReadVariableLengthOpaque(r, maxName)
	if err != nil {
		return Entry{}, err
	}
	if p.next.cookie, _, err = runtime.ReadUnsignedHyper(r); err != nil {
		return Entry{}, err
	}
	attributes, _, err := nfsv3.ReadPostOpAttr(r)
	if err != nil {
		return Entry{}, err
	}
	if _, _, err := nfsv3.ReadPostOpFh3(r); err != nil {
		return Entry{}, err
	}
	entry := Entry{Name: string(name), Type: fs.ModeIrregular}
	if a, is := attributes.(*nfsv3.PostOpAttr_TRUE); is {
		entry.Type = type3(a.Attributes.Type)
	}
	return entry, nil
}
