//nolint:gosec // what is unsafe here is how the kernel is called, and here is all of it
package quota

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	Flags         uint32
	ExtentSize    uint32
	Extents       uint32
	Project       uint32
	CowExtentSize uint32
	_             [8]byte
}

// flagInherit (FS_XFLAG_PROJINHERIT) gives what is made in a directory the
// directory's project id.
const flagInherit = 0x200

// dqblk is struct if_nextdqblk of linux/quota.h, of which struct if_dqblk lacks
// only the id. The kernel translates it for XFS.
type dqblk struct {
	HardBlocks, SoftBlocks uint64 // of blockSize
	Space                  uint64 // in bytes
	HardFiles, SoftFiles   uint64
	Files                  uint64
	BlockTime, FileTime    uint64
	Valid                  uint32
	ID                     uint32
}

// blockSize is the unit of limits, QIF_DQBLKSIZE.
const blockSize = 1024

// validBlockLimits (QIF_BLIMITS) sets HardBlocks and SoftBlocks alone.
const validBlockLimits = 1

// statv is struct fs_quota_statv of linux/dqblk_xfs.h.
type statv struct {
	Version int8
	_       uint8
	Flags   uint16
	_       uint32
	_       [3][3]uint64 // struct fs_qfilestatv, of users, groups, projects
	_       [3]uint64    // time limits and warnings
	_       [7]uint64
}

// The flags of statv, and the version that asks for it.
const (
	projectsCounted  = 1 << 4 // FS_QUOTA_PDQ_ACCT
	projectsEnforced = 1 << 5 // FS_QUOTA_PDQ_ENFD
	statvVersion     = 1
)

// The commands of quotactl(2).
const (
	cmdGetFormat    = 0x800004
	cmdGetQuota     = 0x800007
	cmdSetQuota     = 0x800008
	cmdGetNextQuota = 0x800009
	cmdGetState     = 'X'<<8 + 8 // Q_XGETQSTATV, which ext4 answers too

	projectQuota = 2 // PRJQUOTA
)

// quotactlRecord calls for the record of id.
func quotactlRecord(fd int, command int, id uint32, q *dqblk) error {
	return quotactl(fd, command, id, unsafe.Pointer(q))
}

// getState returns what the filesystem counts and enforces.
func getState(fd int) (statv, error) {
	state := statv{Version: statvVersion}
	err := quotactl(fd, cmdGetState, 0, unsafe.Pointer(&state))
	return state, err
}

func getAttributes(fd int) (fsxattr, error) {
	var x fsxattr
	err := ioctl(fd, getXattr, unsafe.Pointer(&x))
	return x, err
}

func setAttributes(fd int, x fsxattr) error { return ioctl(fd, setXattr, unsafe.Pointer(&x)) }

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// noFD is set once the kernel, or a seccomp profile, has refused quotactl_fd.
var noFD atomic.Bool

// quotactl calls for project id on the filesystem of the open directory fd.
func quotactl(fd int, command int, id uint32, arg unsafe.Pointer) error {
	if noFD.Load() {
		return quotactlOldKernel(fd, command, id, arg)
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(command<<8|projectQuota), uintptr(id), uintptr(arg), 0, 0)
	switch {
	case errno == 0:
		return nil
	case errno == unix.ENOSYS && !hasFD():
		noFD.Store(true)
		return quotactlOldKernel(fd, command, id, arg)
	}
	return errno
}

// hasFD reports whether there is quotactl_fd. ENOSYS alone does not say so: it
// is also what a filesystem without quotas answers.
func hasFD() bool {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0), cmdGetFormat<<8|projectQuota, 0, 0, 0, 0)
	return errno == unix.EBADF
}

// quotactlOldKernel is quotactl before Linux 5.14, where a filesystem is named
// by its device.
func quotactlOldKernel(fd int, command int, id uint32, arg unsafe.Pointer) error {
	device, err := deviceOf(fd)
	if err != nil {
		return err
	}
	name, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, uintptr(command<<8|projectQuota), uintptr(unsafe.Pointer(name)), uintptr(id), uintptr(arg), 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ENOENT:
		// Also what the kernel says of an id that it has no record of.
		if _, err := os.Stat(device); err != nil {
			return fmt.Errorf("%w: %w", errNoDevice, err)
		}
	case unix.ENOTBLK:
		return fmt.Errorf("%w: %s", errNoDevice, device)
	}
	return errno
}

// errNoDevice says that the device of a filesystem is not to be seen, as in a
// container that was not given it.
var errNoDevice = errors.New("no block device")

// hasQuotactl reports whether the kernel has quotas at all, and projects.
func hasQuotactl() error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, cmdGetFormat<<8|projectQuota, 0, 0, 0, 0, 0)
	if errno == unix.ENODEV { // of no device, which was none
		return nil
	}
	return errno
}

// deviceOf returns the device that holds the filesystem of fd.
func deviceOf(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer file.Close()
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// id parent major:minor root mountpoint options … - type source options
		before, after, _ := strings.Cut(lines.Text(), " - ")
		mount, source := strings.Fields(before), strings.Fields(after)
		if len(mount) > 2 && mount[2] == number && len(source) > 1 {
			return source[1], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%w: nothing is mounted from device %s", errNoDevice, number)
}
