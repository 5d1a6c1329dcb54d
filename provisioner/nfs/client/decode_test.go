package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"syscall"
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

func TestDirectoriesMadeUpForeverComeToAnEnd(t *testing.T) {
	dir := &Dir{handle: []byte("root")}
	var err error
	for i := range maxDepth {
		if dir, err = dir.child("d", binary.BigEndian.AppendUint32(nil, uint32(i)), dir.filesystem); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dir.child("d", []byte("another"), dir.filesystem); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("child = %v", err)
	}
}

func TestReadersThatAreSentInACircleNotice(t *testing.T) {
	for before := range uint64(40) {
		for length := uint64(1); length < 40; length++ {
			var c circle
			cookie, last, steps := uint64(0), before+length-1, uint64(0)
			for ; !c.closes(position{cookie: cookie}); steps++ {
				if steps > 4*(before+length) {
					t.Fatalf("a circle of %d after %d steps goes unnoticed", length, before)
				}
				if cookie++; cookie > last {
					cookie = before
				}
			}
			if steps < length {
				t.Fatalf("a circle of %d closes after %d steps", length, steps)
			}
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
