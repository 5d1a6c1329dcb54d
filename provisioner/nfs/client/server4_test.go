package client_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"
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
	// complete says that the client has nothing to reclaim.
	complete bool
}

// slot4 holds the last call, and its reply.
type slot4 struct {
	sequence   uint32
	busy       bool // the call is under way
	operations uint32
	cache      bool // the client asked for the reply to be kept
	reply      []byte
	about      string
}

// retry4 is what a server answers to a sequence id that it has seen.
type retry4 int

const (
	// compareShape, as Linux: another number of operations, or another wish for
	// the reply to be kept, is a false retry; a reply that was not kept is an
	// error of the second operation.
	compareShape retry4 = iota
	// refuseUncached, as illumos and Ganesha: a reply that was not kept is an
	// error of SEQUENCE; one that was is sent whatever is asked.
	refuseUncached
	// sendAnything sends the old reply, whatever is asked.
	sendAnything
)

type open4 struct {
	owner     string
	confirmed bool
}

// newState4 numbers clients and sessions as no other server does.
func newState4() *state4 {
	return &state4{last: rand.Uint64() >> 8, verifiers: map[string]string{}, clients: map[uint64]bool{}, sessions: map[string]*session4{}, owners: map[string]uint32{}, opens: map[string]*open4{}}
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
	session *session4
	slot    *slot4
	// operations is how many the call has.
	operations uint32
	// replay is the reply to an earlier call.
	replay []byte
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
	c := &compound{server: s, minor: minor, operations: count}
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
		if c.replay != nil {
			w.Write(c.replay)
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
		c.slot.reply, c.slot.about, c.slot.busy = slices.Clone(w.Bytes()), about, false
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
	cache := r.flag()
	session, ok := c.state.sessions[string(id)]
	if !ok || time.Since(session.renewed) > time.Duration(c.lease)*time.Second {
		return 10052
	}
	session.renewed = time.Now()
	if int(number) >= len(session.slots) {
		return 10053
	}
	slot := &session.slots[number]
	switch {
	case sequence == slot.sequence && slot.busy:
		return 10008 // DELAY
	case sequence == slot.sequence && sequence > 0:
		return c.retry(slot, cache, r)
	case sequence != slot.sequence+1 || slot.busy:
		return 10063 // SEQ_MISORDERED
	}
	slot.sequence++
	slot.busy, slot.cache, slot.operations = true, cache, c.operations
	c.slot, c.session = slot, session
	w.Write(id)
	w.u32(sequence, number, 3, 3, 0)
	return 0
}

// retry answers a sequence id that was seen before.
func (c *compound) retry(slot *slot4, cache bool, r *reader) uint32 {
	const uncached, falseRetry = 10068, 10076
	kept := slot.cache || slot.operations == 1
	switch {
	case c.retries == compareShape && (slot.operations != c.operations || slot.cache != cache):
		return falseRetry
	case c.retries == refuseUncached && !kept:
		return uncached
	case c.retries == compareShape && !kept:
		var old writer
		const sequenceResult = 16 + 5*4
		begin := 12 // without status, tag and number of results
		old.u32(uncached, 0, 2)
		old.Write(slot.reply[begin : begin+8+sequenceResult])
		old.u32(r.u32(), uncached)
		c.slot, c.replay = slot, old.Bytes()
		return 0
	}
	c.slot, c.replay = slot, slot.reply
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
	case "reclaim_complete":
		r.u32() // for all filesystems
		if c.session.complete {
			return 10054
		}
		c.session.complete = true
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
