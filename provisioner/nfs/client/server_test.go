package client_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/nfs/client"
)

const exportPath = "/export"

// fault is what goes wrong after a call was done.
type fault int

const (
	none fault = iota
	dropReply
	duplicateReply
	truncateReply
	closeConnection
	garbleReply
)

// server is an NFS server over a temporary directory: version 3 with mount, and
// versions 4.0 and 4.1, all on one port.
type server struct {
	t       testing.TB
	base    string
	address string

	mu          sync.Mutex
	listener    net.Listener
	connections map[net.Conn]bool
	accepted    int
	sourcePorts []int
	calls       map[string]int
	handles     map[uint64]int
	numbers     map[[2]uint64]uint64
	lastHandle  uint64
	snapshots   map[uint64][]string
	state       *state4

	// before is asked before an operation: a status other than 0 is its answer.
	before func(op string) uint32
	// after is asked after an operation.
	after func(op string) fault
	// held says which operation's replies are held back, until release.
	held    string
	release chan struct{}
	// stalled says which operations are not done before a channel is closed.
	stalled map[string]chan struct{}
	// stalling counts the operations that wait for that.
	stalling int
	// retries is what becomes of a sequence id that was seen before.
	retries retry4
	// minor refuses version 4 above this minor version; -1 refuses all.
	minor int
	// secure refuses mounts, as for a port above 1023.
	secure bool
	// lie is the name of an entry that every directory claims to hold.
	lie string
	// endless makes every directory begin anew where it should end.
	endless bool
	// misdirected names a directory that is said to be the export itself.
	misdirected string
	// lease is how many seconds a state of version 4 lives.
	lease uint32
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{
		t: t, base: t.TempDir(), minor: 1, lease: 90, connections: map[net.Conn]bool{}, calls: map[string]int{},
		handles: map[uint64]int{}, numbers: map[[2]uint64]uint64{}, snapshots: map[uint64][]string{}, state: newState4(),
	}
	s.start("127.0.0.1:0")
	t.Cleanup(func() {
		s.stop()
		for _, fd := range s.handles {
			unix.Close(fd)
		}
	})
	return s
}

func (s *server) start(address string) {
	s.t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.listener, s.address = listener, listener.Addr().String()
	s.mu.Unlock()
	go s.accept(listener)
}

func (s *server) accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.connections[connection] = true
		s.accepted++
		s.sourcePorts = append(s.sourcePorts, connection.RemoteAddr().(*net.TCPAddr).Port)
		s.mu.Unlock()
		go s.serve(connection)
	}
}

// stop closes the port and all connections.
func (s *server) stop() {
	s.mu.Lock()
	_ = s.listener.Close()
	s.mu.Unlock()
	s.hangUp()
}

// hangUp closes all connections.
func (s *server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for connection := range s.connections {
		_ = connection.Close()
	}
	clear(s.connections)
}

// restart forgets what a server keeps in memory.
func (s *server) restart(down time.Duration) {
	s.stop()
	time.Sleep(down)
	s.mu.Lock()
	s.state = newState4()
	s.mu.Unlock()
	s.start(s.address)
}

// forgetHandles makes all handles stale.
func (s *server) forgetHandles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.handles {
		unix.Close(fd)
	}
	clear(s.handles)
	clear(s.numbers)
}

func (s *server) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

func (s *server) dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

func (s *server) openConnections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.connections)
}

// breakOnce lets one kind of operation go wrong the first n times.
func (s *server) breakOnce(op string, n int, f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = func(done string) fault {
		if done != op || n == 0 {
			return none
		}
		n--
		return f
	}
}

// answerFirst answers one kind of operation with a status the first n times.
func (s *server) answerFirst(op string, n int, status uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = func(asked string) uint32 {
		if asked != op || n == 0 {
			return 0
		}
		n--
		return status
	}
}

// stall keeps operations of a kind from being done, and others not, until
// release is called.
func (s *server) stall(op string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stalled := make(chan struct{})
	if s.stalled == nil {
		s.stalled = map[string]chan struct{}{}
	}
	s.stalled[op] = stalled
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stalled[op] == stalled {
			delete(s.stalled, op)
			close(stalled)
		}
	}
}

// enter counts an operation and returns the status that it shall have. It is
// called with mu held, as everything that serves a call, and gives it up while
// the operation is stalled.
func (s *server) enter(op string) uint32 {
	if stalled := s.stalled[op]; stalled != nil {
		s.stalling++
		s.mu.Unlock()
		<-stalled
		s.mu.Lock()
		s.stalling--
	}
	s.calls[op]++
	if s.before == nil {
		return 0
	}
	return s.before(op)
}

func (s *server) serve(connection net.Conn) {
	defer func() {
		_ = connection.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.connections, connection)
	}()
	input := bufio.NewReader(connection)
	for {
		var header [4]byte
		if _, err := io.ReadFull(input, header[:]); err != nil {
			return
		}
		record := make([]byte, binary.BigEndian.Uint32(header[:])&0x7fffffff)
		if _, err := io.ReadFull(input, record); err != nil {
			return
		}
		go s.answerOn(connection, record)
	}
}

// answerOn answers a call, as far as no fault keeps it from that.
func (s *server) answerOn(connection net.Conn, record []byte) {
	reply, f, held := s.answer(&reader{record})
	if held != nil {
		<-held
		f = none
	}
	if f == dropReply {
		return
	}
	if f == closeConnection || !s.reply(connection, reply, f) {
		_ = connection.Close()
	}
}

// reply sends a reply, as far as f lets it, and reports whether the connection
// is any good afterwards.
func (s *server) reply(connection net.Conn, reply []byte, f fault) bool {
	size := len(reply)
	switch f {
	case truncateReply:
		reply = reply[:size-5]
	case garbleReply:
		for i := 24; i < size; i++ {
			reply[i] ^= 0xa5
		}
	}
	// In two fragments, as a server may.
	out := binary.BigEndian.AppendUint32(nil, 8)
	out = append(out, reply[:8]...)
	out = binary.BigEndian.AppendUint32(out, uint32(size-8)|1<<31)
	out = append(out, reply[8:]...)
	if f == duplicateReply {
		out = append(out, out...)
	}
	_, err := connection.Write(out)
	return err == nil && f != truncateReply
}

// hold keeps back the replies to an operation, and only those, until release is
// called.
func (s *server) hold(op string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.release = op, make(chan struct{})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held != "" {
			s.held = ""
			close(s.release)
		}
	}
}

// answer does a call.
func (s *server) answer(r *reader) (_ []byte, f fault, held <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	xid := r.u32()
	r.u32() // a call
	r.u32() // RPC version
	program, version, procedure := r.u32(), r.u32(), r.u32()
	for range 2 { // credential, verifier
		r.u32()
		r.opaque()
	}
	var results writer
	accept, op := uint32(0), ""
	switch {
	case program == 100005:
		op = "mount"
		s.mount(r, &results)
	case program == 100003 && version == 3:
		op = s.version3(procedure, r, &results)
	case program == 100003 && version == 4 && s.minor >= 0:
		op = s.version4(r, &results)
	default:
		accept = 2 // PROG_MISMATCH
		results.u32(3, 3)
	}
	var reply writer
	reply.u32(xid, 1, 0, 0, 0, accept)
	reply.Write(results.Bytes())
	if op != "" && s.held == op {
		held = s.release
	}
	if s.after != nil {
		f = s.after(op)
	}
	return reply.Bytes(), f, held
}

func (s *server) mount(r *reader, w *writer) {
	status := s.enter("mount")
	share := r.text()
	switch {
	case status != 0:
		w.u32(status)
	case s.secure:
		w.u32(13)
	case share != exportPath:
		w.u32(2)
	default:
		w.u32(0)
		w.opaque(s.root())
		w.u32(1, 1)
	}
}

// options are how a client reaches the server.
func (s *server) options(version client.Version) client.Options {
	host, text, err := net.SplitHostPort(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		s.t.Fatal(err)
	}
	return client.Options{Server: host, Port: uint16(port), MountPort: uint16(port), Share: exportPath, Version: version,
		UnprivilegedPort: true, Timeout: 10 * time.Second}
}

func (s *server) dial(version client.Version) *client.Client {
	s.t.Helper()
	return s.dialWith(s.options(version), client.PoolOptions{})
}

func (s *server) dialWith(options client.Options, pool client.PoolOptions) *client.Client {
	s.t.Helper()
	options.Pool = client.NewPool(pool)
	c, err := client.Dial(s.t.Context(), options)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = c.Close()
		options.Pool.Close()
	})
	return c
}
