package client_test

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// state4 is what a server forgets when it restarts.
type state4 struct {
	verifiers map[string]string // of version 3
	last      uint64
	clients   map[uint64]bool // and whether each is confirmed
	sessions  map[string]*session4
	owners    map[string]uint32
	opens     map[string]*open4
}

type session4 struct {
	client  uint64
	slots   [4]slot4
	renewed time.Time
}

// slot4 holds the last reply, and what it was about.
type slot4 struct {
	sequence uint32
	reply    []byte
	about    string
}

type open4 struct {
	owner     string
	confirmed bool
}

func newState4() *state4 {
	return &state4{verifiers: map[string]string{}, clients: map[uint64]bool{}, sessions: map[string]*session4{}, owners: map[string]uint32{}, opens: map[string]*open4{}}
}

func (s *state4) number() []byte {
	s.last++
	return binary.BigEndian.AppendUint64(nil, s.last)
}

var operations4 = map[uint32]string{
	4: "close", 6: "mkdir", 9: "getattr", 10: "getfh", 15: "lookup", 17: "nverify", 18: "create", 20: "open_confirm", 22: "putfh", 24: "putrootfh",
	25: "read", 26: "readdir", 28: "remove", 29: "rename", 30: "renew", 32: "savefh", 34: "setattr", 35: "setclientid", 36: "setclientid_confirm",
	37: "verify", 38: "write", 42: "exchange_id", 43: "create_session", 44: "destroy_session", 53: "sequence", 57: "destroy_clientid",
	58: "reclaim_complete",
}

// auxiliary operations give a compound no name.
var auxiliary4 = []string{"sequence", "putfh", "putrootfh", "savefh", "getfh", "verify", "nverify"}

const (
	pseudoRoot  = "pseudo"
	statusMinor = 10021
)

// compound is the state of one call.
type compound struct {
	*server
	minor   int
	current []byte
	saved   []byte
	slot    *slot4
	replay  bool
}

// version4 does a call and returns the name of what it was about.
func (s *server) version4(r *reader, w *writer) string {
	tag, minor, count := r.opaque(), int(r.u32()), r.u32()
	if minor > s.minor {
		w.u32(statusMinor)
		w.opaque(tag)
		w.u32(0)
		return ""
	}
	c := &compound{server: s, minor: minor}
	var (
		results writer
		status  uint32
		done    uint32
		about   string
	)
	for status == 0 && done < count {
		number := r.u32()
		op := operations4[number]
		if about == "" || about == "lookup" && op != "getattr" {
			if !slices.Contains(auxiliary4, op) {
				about = op
			}
		}
		body := &writer{}
		status = c.do(op, r, body)
		if c.replay {
			w.Write(c.slot.reply)
			return c.slot.about
		}
		results.u32(number, status)
		if status == 0 {
			results.Write(body.Bytes())
		} else if op == "setattr" {
			results.u32(0)
		}
		done++
	}
	w.u32(status)
	w.opaque(tag)
	w.u32(done)
	w.Write(results.Bytes())
	if c.slot != nil {
		c.slot.reply, c.slot.about = slices.Clone(w.Bytes()), about
	}
	return about
}

func (c *compound) do(op string, r *reader, w *writer) uint32 {
	switch op {
	case "create", "open_confirm", "close": // count after they have taken a number
	default:
		if status := c.enter(op); status != 0 {
			return status
		}
	}
	switch op {
	case "sequence":
		return c.sequence(r, w)
	case "exchange_id", "create_session", "destroy_session", "destroy_clientid", "reclaim_complete", "setclientid", "setclientid_confirm", "renew":
		return c.client(op, r, w)
	case "putrootfh":
		c.current = []byte(pseudoRoot)
		return 0
	case "putfh":
		c.current = r.opaque()
		if string(c.current) == pseudoRoot {
			return 0
		}
		_, err := c.open(c.current)
		return statusOf(err)
	case "savefh":
		c.saved = c.current
		return 0
	case "getfh":
		w.opaque(c.current)
		return 0
	}
	if string(c.current) == pseudoRoot {
		return c.pseudo(op, r, w)
	}
	fd, err := c.open(c.current)
	if err != nil {
		return statusOf(err)
	}
	switch op {
	case "create", "open_confirm", "close", "write":
		return c.stateful(op, fd, r, w)
	}
	return c.file(op, fd, r, w)
}

func (c *compound) pseudo(op string, r *reader, w *writer) uint32 {
	switch op {
	case "lookup":
		if r.text() != exportPath[1:] {
			return 2
		}
		c.current = c.root()
		return 0
	case "getattr":
		c.attributes(w, nil, readBitmap(r))
		return 0
	}
	return 13
}

func (c *compound) sequence(r *reader, w *writer) uint32 {
	id := r.fixed(16)
	sequence, number := r.u32(), r.u32()
	r.u32() // highest slot
	r.u32() // cachethis: all are
	session, ok := c.state.sessions[string(id)]
	if !ok || time.Since(session.renewed) > time.Duration(c.lease)*time.Second {
		return 10052
	}
	session.renewed = time.Now()
	if int(number) >= len(session.slots) {
		return 10053
	}
	slot := &session.slots[number]
	c.slot = slot
	switch sequence {
	case slot.sequence:
		c.replay = true
		return 0
	case slot.sequence + 1:
		slot.sequence++
	default:
		c.slot = nil
		return 10063
	}
	w.Write(id)
	w.u32(sequence, number, 3, 3, 0)
	return 0
}

func (c *compound) client(op string, r *reader, w *writer) uint32 {
	state := c.state
	switch op {
	case "exchange_id":
		id := state.number()
		w.Write(id)
		w.u32(1, 1<<16, 0)
		w.u64(0)
		w.opaque([]byte("server"))
		w.opaque([]byte("scope"))
		w.u32(0)
		state.clients[binary.BigEndian.Uint64(id)] = true
	case "create_session":
		id := r.u64()
		if !state.clients[id] {
			return 10022
		}
		session := append(make([]byte, 8), state.number()...)
		state.sessions[string(session)] = &session4{client: id, renewed: time.Now()}
		w.Write(session)
		w.u32(1, 0)
		for range 2 {
			w.u32(0, 1<<20, 1<<20, 4096, 16, 4, 0)
		}
	case "destroy_session":
		delete(state.sessions, string(r.fixed(16)))
	case "destroy_clientid":
		delete(state.clients, r.u64())
	case "setclientid":
		id := state.number()
		w.Write(id)
		w.Write(id)
		state.clients[binary.BigEndian.Uint64(id)] = false
	case "setclientid_confirm", "renew":
		id := r.u64()
		if _, ok := state.clients[id]; !ok {
			return 10022
		}
		state.clients[id] = true
	}
	return 0
}

func (c *compound) file(op string, fd int, r *reader, w *writer) uint32 {
	change := func() { w.u32(1); w.u64(1, 2) }
	switch op {
	case "lookup":
		handle, _, err := c.handleOf(fd, r.text())
		c.current = handle
		return statusOf(err)
	case "getattr":
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		c.attributes(w, &st, readBitmap(r))
		return statusOf(err)
	case "verify", "nverify":
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		readBitmap(r)
		r.u32()
		switch same := r.u32() == typeNumber(st.Mode); {
		case same && op == "nverify":
			return 10009
		case !same && op == "verify":
			return 10027
		}
		return statusOf(err)
	case "setattr":
		r.fixed(16)
		mode, uid, gid := readAttributes4(r)
		w.u32(0)
		return statusOf(setOwnerAndMode(fd, mode, uid, gid))
	case "mkdir":
		if r.u32() != 2 {
			return 10007
		}
		name := r.text()
		mode, _, _ := readAttributes4(r)
		change()
		w.u32(0)
		return statusOf(mkdir(fd, name, *mode))
	case "remove":
		name := r.text()
		err := unix.Unlinkat(fd, name, 0)
		if err == unix.EISDIR {
			err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		}
		change()
		return statusOf(err)
	case "rename":
		from, err := c.open(c.saved)
		if err != nil {
			return statusOf(err)
		}
		change()
		change()
		name := r.text()
		return statusOf(unix.Renameat(from, name, fd, r.text()))
	case "read":
		r.fixed(16)
		data, end, err := readAt(fd, r.u64(), r.u32())
		w.u32(boolean(end))
		w.opaque(data)
		return statusOf(err)
	case "readdir":
		return c.readdir(fd, r, w)
	}
	return 10044
}

// stateful does what belongs to an open file.
func (c *compound) stateful(op string, fd int, r *reader, w *writer) uint32 {
	state := c.state
	switch op {
	case "create":
		return c.create(fd, r, w)
	case "write":
		id := r.fixed(16)[4:]
		if file, ok := state.opens[string(id)]; !ok || !file.confirmed {
			return 10025
		}
		offset, stable := r.u64(), r.u32()
		n, err := writeAt(fd, offset, r.opaque())
		w.u32(uint32(n), stable)
		w.u64(0)
		return statusOf(err)
	}
	var id []byte
	var sequence uint32
	if op == "close" {
		sequence, id = r.u32(), r.fixed(16)
	} else {
		id, sequence = r.fixed(16), r.u32()
	}
	file, ok := state.opens[string(id[4:])]
	if !ok {
		return 10025
	}
	if status := c.number(op, file.owner, sequence); status != 0 {
		return status
	}
	file.confirmed = true
	if op == "close" {
		delete(state.opens, string(id[4:]))
	}
	w.Write(id)
	return 0
}

// number checks the number that the owner of an open file gave a call.
func (c *compound) number(op, owner string, sequence uint32) uint32 {
	if next, known := c.state.owners[owner]; c.minor == 0 && known && next != sequence {
		return 10026
	}
	c.state.owners[owner] = sequence + 1
	return c.enter(op)
}

func (c *compound) create(dir int, r *reader, w *writer) uint32 {
	sequence := r.u32()
	r.u32() // access
	r.u32() // deny
	id, owner := r.u64(), r.text()
	if c.minor == 0 && !c.state.clients[id] {
		return 10022
	}
	_, known := c.state.owners[owner]
	if status := c.number("create", owner, sequence); status != 0 {
		return status
	}
	if create, how := r.u32(), r.u32(); create != 1 || how != 1 { // CREATE, GUARDED
		return 22
	}
	mode, _, _ := readAttributes4(r)
	if r.u32() != 0 {
		return 10004
	}
	name := r.text()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, *mode)
	if err != nil {
		return statusOf(err)
	}
	unix.Close(fd)
	handle, _, err := c.handleOf(dir, name)
	c.current = handle
	confirm := c.minor == 0 && !known
	other := append(make([]byte, 4), c.state.number()...)
	c.state.opens[string(other)] = &open4{owner: owner, confirmed: !confirm}
	w.u32(1)
	w.Write(other)
	w.u32(1)
	w.u64(1, 2)
	w.u32(2*boolean(confirm), 0, 0)
	return statusOf(err)
}

func (c *compound) readdir(fd int, r *reader, w *writer) uint32 {
	cookie, verifier := r.u64(), r.u64()
	r.u32() // dircount
	limit := int(r.u32())
	bitmap := readBitmap(r)
	from := uint64(0)
	if cookie > 0 {
		from = cookie - 2
	}
	names, id, err := c.names(fd, from, verifier)
	if err != nil {
		return 10027
	}
	w.u64(id)
	for _, name := range names {
		if w.Len()+len(name)+60 > limit {
			w.u32(0, 0)
			return 0
		}
		from++
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue // removed since the list was begun
		}
		w.u32(1)
		w.u64(from + 2) // 0, 1 and 2 are special
		w.opaque([]byte(name))
		c.attributes(w, &st, bitmap)
	}
	w.u32(0, 1)
	return 0
}

func readBitmap(r *reader) (numbers []uint32) {
	for i := range min(r.u32(), 3) {
		for word := r.u32(); word != 0; word &= word - 1 {
			numbers = append(numbers, i*32+uint32(bits.TrailingZeros32(word)))
		}
	}
	return numbers
}

func (s *server) attributes(w *writer, st *unix.Stat_t, asked []uint32) {
	if st == nil {
		st = &unix.Stat_t{Mode: unix.S_IFDIR | 0o555}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.base, &fs); err != nil {
		s.t.Error(err)
	}
	var (
		values writer
		mask   [2]uint32
	)
	for _, number := range asked {
		switch number {
		case 1:
			values.u32(typeNumber(st.Mode))
		case 4:
			values.u64(uint64(st.Size))
		case 8:
			values.u64(st.Dev, 0)
		case 10:
			values.u32(s.lease)
		case 21:
			values.u64(fs.Ffree)
		case 23:
			values.u64(fs.Files)
		case 33:
			values.u32(st.Mode & 0o7777)
		case 36:
			values.opaque(strconv.AppendUint(nil, uint64(st.Uid), 10))
		case 37:
			values.opaque(strconv.AppendUint(nil, uint64(st.Gid), 10))
		case 42:
			values.u64(fs.Bavail * uint64(fs.Bsize))
		case 44:
			values.u64(fs.Blocks * uint64(fs.Bsize))
		default:
			continue
		}
		mask[number/32] |= 1 << (number % 32)
	}
	w.u32(2, mask[0], mask[1])
	w.opaque(values.Bytes())
}

func readAttributes4(r *reader) (mode, uid, gid *uint32) {
	numbers := readBitmap(r)
	values := &reader{r.opaque()}
	for _, number := range numbers {
		switch number {
		case 33:
			mode = new(values.u32())
		case 36, 37:
			id, err := strconv.ParseUint(values.text(), 10, 32)
			if err != nil {
				continue
			}
			if number == 36 {
				uid = new(uint32(id))
			} else {
				gid = new(uint32(id))
			}
		}
	}
	return mode, uid, gid
}
