package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/buildbarn/go-xdr/pkg/protocols/mount"
	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv3"
)

func TestRecordsAreBounded(t *testing.T) {
	for name, input := range map[string][]byte{
		"one large fragment": binary.BigEndian.AppendUint32(nil, lastFragment|(maxReply+1)),
		"many fragments":     bytes.Repeat(append(binary.BigEndian.AppendUint32(nil, 1<<10), make([]byte, 1<<10)...), 1025),
		"empty fragments":    make([]byte, 1<<20),
	} {
		if _, err := readRecord(bufio.NewReader(bytes.NewReader(input))); !errors.Is(err, errGarbled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzReply feeds all decoders whatever a server may send.
func FuzzReply(f *testing.F) {
	accepted := []byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	record := func(results ...byte) []byte {
		whole := append(bytes.Clone(accepted), results...)
		return append(binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(whole))), whole...)
	}
	f.Add(record())
	f.Add(record(make([]byte, 200)...))
	f.Add(record(bytes.Repeat([]byte{0, 0, 0, 1}, 50)...))
	f.Add(record(bytes.Repeat([]byte{0xff}, 100)...))
	for operation := range byte(60) { // a compound of one result
		f.Add(record(append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, operation}, make([]byte, 120)...)...))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		record, err := readRecord(bufio.NewReader(bytes.NewReader(input)))
		if err != nil {
			return
		}
		results, err := decodeReply(record, request{})
		if err != nil {
			return
		}
		rest, err := io.ReadAll(results)
		if err != nil {
			t.Fatal(err)
		}
		for _, decode := range []func(r io.Reader) error{
			func(r io.Reader) error { _, _, err := readPage3(r); return err },
			func(r io.Reader) error { _, _, err := nfsv3.ReadGetattr3res(r); return err },
			func(r io.Reader) error { _, _, err := nfsv3.ReadLookup3res(r); return err },
			func(r io.Reader) error { _, _, err := nfsv3.ReadRead3res(r); return err },
			func(r io.Reader) error { _, _, err := nfsv3.ReadCreate3res(r); return err },
			func(r io.Reader) error { _, _, err := nfsv3.ReadFsstat3res(r); return err },
			func(r io.Reader) error { _, _, err := mount.ReadMountres3(r); return err },
		} {
			_ = decode(bytes.NewReader(rest))
		}
		if reply, err := readReply4(bytes.NewReader(rest), 8); err == nil {
			_, _ = infoFrom4(reply)
			_, _ = handleFrom4(reply)
			_ = taken4(reply)
		}
	})
}
