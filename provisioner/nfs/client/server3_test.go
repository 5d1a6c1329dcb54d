package client_test

import (
	"golang.org/x/sys/unix"
)

var procedures3 = map[uint32]string{
	1: "getattr", 2: "setattr", 3: "lookup", 6: "read", 7: "write", 8: "create", 9: "mkdir", 12: "remove", 13: "rmdir", 14: "rename",
	17: "readdir", 18: "fsstat",
}

// version3 does a call and returns its name.
func (s *server) version3(procedure uint32, r *reader, w *writer) string {
	op := procedures3[procedure]
	status := s.enter(op)
	body := &writer{}
	if status == 0 {
		status = statusOf(s.do3(op, r, body))
	}
	w.u32(status)
	if status == 0 {
		w.Write(body.Bytes())
		return op
	}
	switch op { // what a failure carries
	case "getattr":
	case "rename":
		w.u32(0, 0, 0, 0)
	case "setattr", "write", "create", "mkdir", "remove", "rmdir":
		w.u32(0, 0)
	default:
		w.u32(0)
	}
	return op
}

func (s *server) do3(op string, r *reader, w *writer) error {
	fd, err := s.open(r.opaque())
	if err != nil {
		return err
	}
	switch op {
	case "getattr":
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		attributes3(w, &st)
		return err
	case "setattr":
		mode, uid, gid := readAttributes3(r)
		w.u32(0, 0)
		return setOwnerAndMode(fd, mode, uid, gid)
	case "lookup":
		handle, st, err := s.handleOf(fd, r.text())
		w.opaque(handle)
		w.u32(1)
		attributes3(w, &st)
		w.u32(0)
		return err
	case "read":
		data, end, err := readAt(fd, r.u64(), r.u32())
		w.u32(0, uint32(len(data)), boolean(end))
		w.opaque(data)
		return err
	case "write":
		offset := r.u64()
		r.u32() // count
		stable := r.u32()
		n, err := writeAt(fd, offset, r.opaque())
		w.u32(0, 0, uint32(n), stable)
		w.u64(0)
		return err
	case "create":
		return s.create3(fd, r, w)
	case "mkdir":
		name := r.text()
		mode, _, _ := readAttributes3(r)
		w.u32(0, 0, 0, 0)
		return mkdir(fd, name, *mode)
	case "remove":
		w.u32(0, 0)
		return unix.Unlinkat(fd, r.text(), 0)
	case "rmdir":
		w.u32(0, 0)
		return unix.Unlinkat(fd, r.text(), unix.AT_REMOVEDIR)
	case "rename":
		name := r.text()
		to, err := s.open(r.opaque())
		if err != nil {
			return err
		}
		w.u32(0, 0, 0, 0)
		return unix.Renameat(fd, name, to, r.text())
	case "readdir":
		return s.readdir3(fd, r, w)
	case "fsstat":
		var st unix.Statfs_t
		err := unix.Fstatfs(fd, &st)
		w.u32(0)
		w.u64(st.Blocks*uint64(st.Bsize), st.Bfree*uint64(st.Bsize), st.Bavail*uint64(st.Bsize), st.Files, st.Ffree, st.Ffree)
		w.u32(0)
		return err
	}
	return unix.EINVAL
}

// create3 keeps the verifier in the file's content until it is written: the
// file of an exclusive create that comes twice is the same.
func (s *server) create3(dir int, r *reader, w *writer) error {
	name := r.text()
	if r.u32() != 2 {
		return unix.EINVAL
	}
	verifier := string(r.fixed(8))
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
	if err == nil {
		s.state.verifiers[name] = verifier
		unix.Close(fd)
	} else if s.state.verifiers[name] != verifier {
		return err
	}
	handle, _, err := s.handleOf(dir, name)
	w.u32(1)
	w.opaque(handle)
	w.u32(0, 0, 0)
	return err
}

func (s *server) readdir3(fd int, r *reader, w *writer) error {
	cookie, verifier := r.u64(), r.u64()
	r.u32() // dircount
	limit := int(r.u32())
	names, id, err := s.names(fd, cookie, verifier)
	if err != nil {
		return err
	}
	if s.endless {
		cookie, id = 0, 1
	}
	w.u32(0)
	w.u64(id)
	for _, name := range names {
		if w.Len()+len(name)+140 > limit {
			w.u32(0, 0)
			return nil
		}
		cookie++
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue // removed since the list was begun
		}
		w.u32(1)
		w.u64(st.Ino)
		w.opaque([]byte(name))
		w.u64(cookie)
		w.u32(1)
		attributes3(w, &st)
		w.u32(0)
	}
	w.u32(0, boolean(!s.endless))
	return nil
}

func attributes3(w *writer, st *unix.Stat_t) {
	w.u32(typeNumber(st.Mode), st.Mode&0o7777, uint32(st.Nlink), st.Uid, st.Gid)
	w.u64(uint64(st.Size), uint64(st.Blocks)*512, 0, st.Dev, st.Ino)
	w.u32(0, 0, 0, 0, 0, 0)
}

func readAttributes3(r *reader) (mode, uid, gid *uint32) {
	for _, value := range []**uint32{&mode, &uid, &gid} {
		if r.flag() {
			*value = new(r.u32())
		}
	}
	return mode, uid, gid
}

func boolean(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
