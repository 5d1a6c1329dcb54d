package directory

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const openDirectory = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// noOpenat2 is set once the kernel, or a seccomp profile, has refused openat2.
var noOpenat2 atomic.Bool

// openChild opens the directory name in parent, unless it is a symbolic link or
// a mount point.
func openChild(parent int, name string) (int, error) {
	if noOpenat2.Load() {
		return openChildOldKernel(parent, name)
	}
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   openDirectory,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch err {
	case unix.EXDEV:
		return -1, ErrCrossesMount
	case unix.ENOSYS, unix.EPERM:
		noOpenat2.Store(true)
		return openChildOldKernel(parent, name)
	}
	return fd, err
}

// openChildOldKernel is openChild before Linux 5.6: the mount is looked at
// after the directory was opened, by handle, which is as good.
func openChildOldKernel(parent int, name string) (int, error) {
	fd, err := unix.Openat(parent, name, openDirectory, 0)
	if err != nil {
		return -1, err
	}
	above, err := mountOf(parent)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	below, err := mountOf(fd)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if above.mount != below.mount || (!above.hasMount && above.device != below.device) {
		_ = unix.Close(fd)
		return -1, ErrCrossesMount
	}
	return fd, nil
}

// mountIdentity tells where a directory is.
type mountIdentity struct {
	mount    uint64
	hasMount bool // false before Linux 5.8
	isRoot   bool // the directory is the one that is mounted
	device   uint64
	inode    uint64
}

func mountOf(fd int) (mountIdentity, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID|unix.STATX_INO, &st)
	if err == nil {
		return mountIdentity{
			mount:    st.Mnt_id,
			hasMount: st.Mask&unix.STATX_MNT_ID != 0,
			isRoot:   st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
			device:   unix.Mkdev(st.Dev_major, st.Dev_minor),
			inode:    st.Ino,
		}, nil
	}
	var old unix.Stat_t
	if err := unix.Fstat(fd, &old); err != nil {
		return mountIdentity{}, err
	}
	return mountIdentity{device: old.Dev, inode: old.Ino}, nil
}

// checkMounted refuses a base that is not the root of a filesystem. Reading
// mountinfo is slow on a node with many mounts, so a base that is known to be
// good is recognised without.
func (l *Local) checkMounted(root *localDir) error {
	var (
		id     mountIdentity
		subvol bool
	)
	if err := root.do("statx", "", func(fd int) (err error) {
		if id, err = mountOf(fd); err != nil {
			return err
		}
		subvol, err = isSubvolume(fd, id)
		return err
	}); err != nil {
		return err
	}
	l.mu.Lock()
	known := l.mounted
	l.mu.Unlock()
	if id == known {
		return nil
	}
	if !id.hasMount {
		return fmt.Errorf("base %s: this kernel can't tell whether it is mounted: %w", l.base, errors.ErrUnsupported)
	}
	if !id.isRoot {
		return fmt.Errorf("base %s %w: is the disk mounted?", l.base, ErrNotMounted)
	}
	within, err := mountRoot(id.mount)
	if err != nil {
		return err
	}
	if within != "/" && !subvol {
		return fmt.Errorf("base %s is directory %s of its filesystem, not a filesystem of its own: is the disk mounted?", l.base, within)
	}
	l.mu.Lock()
	l.mounted = id
	l.mu.Unlock()
	return nil
}

// subvolumeInode is the inode of the root of every btrfs subvolume.
const subvolumeInode = 256

func isSubvolume(fd int, id mountIdentity) (bool, error) {
	if id.inode != subvolumeInode {
		return false, nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, err
	}
	return uint32(st.Type) == unix.BTRFS_SUPER_MAGIC, nil //nolint:gosec // its type differs between machines, its 32 bits don't
}

// mountRoot returns which directory of its filesystem a mount shows.
func mountRoot(mount uint64) (string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer file.Close()
	id := strconv.FormatUint(mount, 10)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// id parent major:minor root mountpoint …, proc_pid_mountinfo(5)
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && fields[0] == id {
			return fields[3], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("mount %s is not in /proc/self/mountinfo", id)
}

// renameNoReplace renames without replacing what is there. Filesystems that
// can't do it (EINVAL) are looked at first: see Dir.Rename.
func renameNoReplace(from int, name string, to int, newName string) error {
	err := unix.Renameat2(from, name, to, newName, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(to, newName, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		return unix.EEXIST
	case unix.ENOENT:
		return unix.Renameat(from, name, to, newName)
	default:
		return err
	}
}

// writeSynced creates the file name in dir with data on stable storage.
func writeSynced(dir int, name string, data []byte) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err = file.Write(data); err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func infoOf(st *unix.Stat_t) Info {
	return Info{Type: typeOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
}

func typeOf(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	default:
		return fs.ModeIrregular
	}
}

// ownerOf translates to what chown(2) wants, where -1 leaves an owner alone.
func ownerOf(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

func retryEINTR[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if !errors.Is(err, syscall.EINTR) {
			return v, err
		}
	}
}

// damageErrnosHere are those of damageErrnos that only Linux has: the checksum or
// the structure of what was read is wrong, or the medium is.
var damageErrnosHere = []syscall.Errno{syscall.EUCLEAN, syscall.ENODATA, syscall.EREMOTEIO}
