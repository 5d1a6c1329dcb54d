package client_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// This is the filesystem below all versions.

func (s *server) root() []byte {
	handle, _, err := s.handleOf(unix.AT_FDCWD, s.base)
	if err != nil {
		s.t.Error(err)
	}
	return handle
}

// handleOf opens a name, which keeps the inode's number its own.
func (s *server) handleOf(dir int, name string) ([]byte, unix.Stat_t, error) {
	var st unix.Stat_t
	if s.misdirected != "" && name == s.misdirected {
		handle := s.root()
		return handle, st, unix.Fstat(s.handles[binary.BigEndian.Uint64(handle)], &st)
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, st, err
	}
	key := [2]uint64{st.Dev, st.Ino}
	number, known := s.numbers[key]
	if known {
		unix.Close(fd)
	} else {
		s.lastHandle++
		number = s.lastHandle
		s.numbers[key], s.handles[number] = number, fd
	}
	return binary.BigEndian.AppendUint64(nil, number), st, nil
}

// open returns the descriptor of a handle.
func (s *server) open(handle []byte) (int, error) {
	if len(handle) != 8 {
		return -1, unix.ESTALE
	}
	fd, ok := s.handles[binary.BigEndian.Uint64(handle)]
	if !ok {
		return -1, unix.ESTALE
	}
	return fd, nil
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mkdir drops setgid, as all servers do.
func mkdir(dir int, name string, mode uint32) error {
	if err := unix.Mkdirat(dir, name, mode&0o777); err != nil {
		return err
	}
	return unix.Fchmodat(dir, name, mode&0o1777, 0)
}

func setOwnerAndMode(fd int, mode, uid, gid *uint32) error {
	if uid != nil || gid != nil {
		u, g := -1, -1
		if uid != nil {
			u = int(*uid)
		}
		if gid != nil {
			g = int(*gid)
		}
		if err := unix.Chown(fdPath(fd), u, g); err != nil {
			return err
		}
	}
	if mode != nil {
		return unix.Chmod(fdPath(fd), *mode)
	}
	return nil
}

func readAt(fd int, offset uint64, count uint32) ([]byte, bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, false, unix.EINVAL
	}
	file, err := os.Open(fdPath(fd))
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	b := make([]byte, count)
	n, err := file.ReadAt(b, int64(offset))
	if errors.Is(err, io.EOF) {
		return b[:n], true, nil
	}
	return b[:n], false, err
}

// writeAt takes at most 10,000 bytes at a time, as a server may.
func writeAt(fd int, offset uint64, data []byte) (int, error) {
	file, err := os.OpenFile(fdPath(fd), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.WriteAt(data[:min(len(data), 10_000)], int64(offset))
}

// names returns the entries of a directory from a position on, of the list as
// it was when it was begun.
func (s *server) names(fd int, cookie, verifier uint64) (names []string, id uint64, err error) {
	if s.endless {
		cookie = 0
	}
	if cookie == 0 {
		entries, err := os.ReadDir(fdPath(fd))
		if err != nil {
			return nil, 0, err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		slices.Sort(names)
		if s.lie != "" {
			names = append(names, s.lie)
		}
		id = uint64(len(s.snapshots) + 1)
		s.snapshots[id] = names
		return names, id, nil
	}
	names, ok := s.snapshots[verifier]
	if !ok || cookie > uint64(len(names)) {
		return nil, 0, unix.EINVAL
	}
	return names[cookie:], verifier, nil
}

func typeNumber(mode uint32) uint32 {
	return map[uint32]uint32{unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFBLK: 3, unix.S_IFCHR: 4, unix.S_IFLNK: 5, unix.S_IFSOCK: 6, unix.S_IFIFO: 7}[mode&unix.S_IFMT]
}

func statusOf(err error) uint32 {
	if err == nil {
		return 0
	}
	var errno unix.Errno
	ok := errors.As(err, &errno)
	if status, special := map[unix.Errno]uint32{unix.ENOTEMPTY: 66, unix.EDQUOT: 69, unix.ESTALE: 70, unix.ENAMETOOLONG: 63, unix.ELOOP: 22}[errno]; special {
		return status
	}
	if !ok || errno > 34 {
		return 5
	}
	return uint32(errno)
}
