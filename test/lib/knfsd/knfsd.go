// Package knfsd runs the NFS server of the Linux kernel, which most NFS servers
// are, in a machine of package uml, and makes its disk stall.
package knfsd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/test/uml"
)

// Server is the running server.
type Server struct {
	// Base is the exported directory, the root of version 4.
	Base string
	// MountPort is where its mountd listens.
	MountPort uint16

	exports int
}

// Port is where it speaks NFS, at 127.0.0.1.
const Port = 2049

const (
	procNFSD = "/proc/fs/nfsd"
	// domain is what the server calls its only client.
	domain = "test"
	// never is when what the server is told ends.
	never = 1<<31 - 1
	// exportFlags are NFSEXP_INSECURE_PORT, NFSEXP_NOSUBTREECHECK and
	// NFSEXP_FSID of linux/nfsd/export.h: for any port, with root's rights.
	exportFlags = 0x2 | 0x400 | 0x2000
)

// Start exports a disk of m, newly made as ext4, until t ends. It is called in
// the machine.
func Start(t *testing.T, m *uml.Machine, disk string) *Server {
	t.Helper()
	s := &Server{Base: m.Mount(t, disk, "ext4", "")}
	must(t, os.Remove(filepath.Join(s.Base, "lost+found")))
	m.Load(t, "nfsd")
	must(t, unix.Mount("nfsd", procNFSD, "nfsd", 0, ""))
	// The shortest times in which clients of a restarted server could reclaim
	// what they had, and others have to wait.
	for file, seconds := range map[string]string{
		"/proc/sys/fs/nfs/nlm_timeout": "3", "/proc/sys/fs/nfs/nlm_grace_period": "3",
		procNFSD + "/nfsv4leasetime": "10", procNFSD + "/nfsv4gracetime": "10",
	} {
		tell(t, file, seconds)
	}
	serveRPC(t, "127.0.0.1:111", func(uint32, []byte) []byte { return binary.BigEndian.AppendUint32(nil, 1) }) // an rpcbind that agrees to everything
	s.MountPort = serveRPC(t, "127.0.0.1:0", s.mount)

	tell(t, "/proc/net/rpc/auth.unix.ip/channel", fmt.Sprintf("nfsd 127.0.0.1 %d %s", never, domain))
	tell(t, "/proc/net/rpc/nfsd.fh/channel", fmt.Sprintf(`%s 1 \x00000000 %d %s`, domain, never, s.Base))
	tell(t, "/proc/net/rpc/nfsd.export/channel", fmt.Sprintf("%s %s %d %d 65534 65534 0", domain, s.Base, never, exportFlags))
	tell(t, procNFSD+"/portlist", fmt.Sprintf("tcp %d", Port))
	// More than calls of a client of version 4.1 at a time: none waits for one.
	tell(t, procNFSD+"/threads", "32")
	t.Cleanup(func() { _ = os.WriteFile(procNFSD+"/threads", []byte("0"), 0) })
	return s
}

// tell writes a line to a file of the server.
func tell(t *testing.T, file, line string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0) //nolint:gosec // a file of the kernel's
	must(t, err)
	_, err = f.WriteString(line + "\n")
	if err != nil {
		t.Fatalf("tell %s %q: %v", file, line, err)
	}
	// A cache whose file nobody has open is taken to have lost its daemon.
	t.Cleanup(func() { _ = f.Close() })
}

// Export makes a directory that a client can mount, and returns its name: version
// 4 mounts it below the root, version 3 below Base.
func (s *Server) Export(t *testing.T) string {
	t.Helper()
	s.exports++
	name := fmt.Sprintf("export-%d", s.exports)
	must(t, os.Mkdir(filepath.Join(s.Base, name), 0o755)) //nolint:gosec // as exports are
	// That the directory is no export of its own is worth saying: the server
	// would ask.
	tell(t, "/proc/net/rpc/nfsd.export/channel", fmt.Sprintf("%s %s %d", domain, filepath.Join(s.Base, name), never))
	return name
}

// mount answers MNT of the mount protocol, with the kernel's own handle.
func (s *Server) mount(procedure uint32, args []byte) []byte {
	if procedure != 1 || len(args) < 4 {
		return nil
	}
	path := string(args[4 : 4+binary.BigEndian.Uint32(args)])
	handle, err := s.handle(path)
	if err != nil {
		return binary.BigEndian.AppendUint32(nil, uint32(unix.EACCES))
	}
	reply := binary.BigEndian.AppendUint32(nil, 0)
	reply = binary.BigEndian.AppendUint32(reply, uint32(len(handle))) //nolint:gosec // 64 at most
	reply = append(reply, handle...)
	reply = append(reply, make([]byte, -len(handle)&3)...)
	return append(reply, 0, 0, 0, 1, 0, 0, 0, 1) // one way to authenticate: AUTH_SYS
}

func (s *Server) handle(path string) ([]byte, error) {
	f, err := os.OpenFile(procNFSD+"/filehandle", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %s 64\n", domain, path); err != nil {
		return nil, err
	}
	line, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(strings.TrimPrefix(strings.TrimSpace(string(line)), `\x`))
}

// serveRPC answers every call of ONC RPC that reaches address until t ends, and
// returns its port.
func serveRPC(t *testing.T, address string, answer func(procedure uint32, args []byte) []byte) (port uint16) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", address)
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerCalls(conn, answer)
		}
	}()
	return uint16(listener.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
}

func answerCalls(conn net.Conn, answer func(procedure uint32, args []byte) []byte) {
	defer conn.Close()
	for {
		var length uint32
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		call := make([]byte, length&^(1<<31))
		if _, err := io.ReadFull(conn, call); err != nil || len(call) < 24 {
			return
		}
		// xid, call, RPC version, program, its version, procedure, two
		// credentials of a flavour and opaque bytes each, arguments
		args := call[24:]
		for range 2 {
			args = args[8+(binary.BigEndian.Uint32(args[4:])+3)&^3:]
		}
		var reply bytes.Buffer
		reply.Write(call[:4])
		reply.Write(binary.BigEndian.AppendUint32(nil, 1)) // a reply
		reply.Write(make([]byte, 16))                      // accepted, no verifier, success
		reply.Write(answer(binary.BigEndian.Uint32(call[20:]), args))
		record := binary.BigEndian.AppendUint32(nil, 1<<31|uint32(reply.Len())) //nolint:gosec // some hundred bytes
		if _, err := conn.Write(append(record, reply.Bytes()...)); err != nil {
			return
		}
	}
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	freeze = 0xC0045877
	thaw   = 0xC0045878
)

// Stall keeps everything from being written to the disk until end is called.
// What only reads goes on.
func (s *Server) Stall() (end func() error, _ error) {
	dir, err := os.Open(s.Base)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetInt(int(dir.Fd()), freeze, 0); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("freeze %s: %w", s.Base, err)
	}
	return func() error {
		defer dir.Close()
		return unix.IoctlSetInt(int(dir.Fd()), thaw, 0)
	}, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
