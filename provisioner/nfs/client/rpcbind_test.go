package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// answering returns the connections to a server that gives every call the same
// answer, from the reply's status on.
func answering(t *testing.T, answer ...uint32) *transport {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pool := NewPool(PoolOptions{})
	t.Cleanup(func() {
		pool.Close()
		_ = listener.Close()
	})
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		input := bufio.NewReader(connection)
		for {
			call, err := readRecord(input)
			if err != nil {
				return
			}
			reply := append(bytes.Clone(call[:4]), 0, 0, 0, 1)
			for _, word := range answer {
				reply = binary.BigEndian.AppendUint32(reply, word)
			}
			_, _ = connection.Write(append(binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(reply))), reply...))
		}
	}()
	return pool.transport(listener.Addr().String(), true)
}

func TestRpcbindNamesThePort(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer []uint32
		port   uint16
		err    error
	}{
		{"a port", []uint32{0, 0, 0, 0, 20048}, 20048, nil},
		{"not registered", []uint32{0, 0, 0, 0, 0}, 0, syscall.EPROTONOSUPPORT},
		{"no port", []uint32{0, 0, 0, 0, 70000}, 0, syscall.EPROTONOSUPPORT},
		{"truncated", []uint32{0, 0, 0, 0}, 0, errGarbled},
		{"program unavailable", []uint32{0, 0, 0, 1}, 0, syscall.EPROTONOSUPPORT},
		{"garbage arguments", []uint32{0, 0, 0, 4}, 0, syscall.EIO},
		{"denied", []uint32{1, 1, 5}, 0, fs.ErrPermission},
	} {
		port, err := portOf(t.Context(), answering(t, c.answer...), programMount, versionMount)
		if port != c.port || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", c.name, port, err)
		}
		if c.name == "denied" && !strings.Contains(err.Error(), "insecure") {
			t.Errorf("no word of insecure: %v", err)
		}
	}
}

func TestOwnersAreNumbersOrRootOrNobody(t *testing.T) {
	for text, want := range map[string]uint32{"0": 0, "1234": 1234, "4294967295": 4294967295, "root@example.com": 0, "root": 0, "alice@example.com": nobody, "": nobody, "-1": nobody} {
		var b bytes.Buffer
		if _, err := runtime.WriteVariableLengthOpaque(&b, 100, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := readOwner4(bytes.NewReader(b.Bytes())); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}
