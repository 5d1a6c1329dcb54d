package directory

import (
	"errors"

	"golang.org/x/sys/unix"
)

// sectorSize is what st_blocks counts, whatever the filesystem's blocks are.
const sectorSize = 512

// allocated returns how much of the filesystem the entry name of dir takes.
func allocated(dir Dir, name string) (int64, error) {
	handle, ok := dir.(Handle)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	var st unix.Stat_t
	err := handle.Control("stat "+name, func(fd int) error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return 0, err
	}
	bytes := st.Blocks * sectorSize
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		bytes /= int64(st.Nlink) //nolint:gosec // far below 1<<63; its type differs between architectures
	}
	return bytes, nil
}
