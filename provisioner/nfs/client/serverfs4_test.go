package client_test

import (
	"math/bits"
	"strconv"

	"golang.org/x/sys/unix"
)

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
	if c.minor == 1 && !c.session.complete {
		return 10013 // GRACE
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
	if c.endless {
		from, id = 0, 1
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
	w.u32(0, boolean(!c.endless))
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
