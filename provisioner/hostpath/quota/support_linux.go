package quota

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// filesystems are those with project quotas, by the number that statfs(2)
// returns, with what an administrator does when they are off.
var filesystems = map[int64]struct{ name, switchOn, enforce string }{
	unix.EXT4_SUPER_MAGIC: {
		name:     "ext4",
		switchOn: "unmount it, run tune2fs -O project -Q prjquota on its device, and mount it with the option prjquota; should that fail, its kernel lacks CONFIG_QFMT_V2",
		enforce:  "it was mounted without the option prjquota, which a remount can't switch on",
	},
	unix.XFS_SUPER_MAGIC: {
		name:     "XFS",
		switchOn: "unmount it, and mount it with the option prjquota, which a remount can't switch on",
		enforce:  "it was mounted with the option pqnoenforce instead of prjquota",
	},
}

// others are the names of filesystems that people may well try.
var others = map[int64]string{
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.NFS_SUPER_MAGIC:       "NFS",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.F2FS_SUPER_MAGIC:      "F2FS",
	unix.FUSE_SUPER_MAGIC:      "FUSE",
	0x2fc12fc1:                 "ZFS",
	0xca451a4e:                 "bcachefs",
}

// check fails unless limits set in the filesystem of fd, a pool's base, are
// enforced.
func check(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	kind := kindOf(st)
	fs, ok := filesystems[kind]
	if !ok {
		name, known := others[kind]
		if !known {
			return unsupported("the filesystem, of type %#x, is neither ext4 nor XFS", kind)
		}
		return unsupported("the filesystem is %s, and only ext4 and XFS limit directories", name)
	}
	if err := hasQuotactl(); err != nil {
		return err
	}
	x, err := getAttributes(fd)
	if err != nil {
		return err
	}
	if x.Flags&flagInherit != 0 && x.Project != 0 {
		return unsupported("the pool's directory has project id %d itself, and hands it down to what is made in it: take it away with chattr -P -p 0 or xfs_io -c 'chproj 0' -c 'chattr -P'", x.Project)
	}
	state, err := getState(fd)
	switch {
	case err != nil && !errors.Is(err, unix.ENOSYS):
		return err
	case kind == unix.XFS_SUPER_MAGIC && xfsWithoutQuotas():
		return unsupported("this kernel's XFS has no quotas (CONFIG_XFS_QUOTA)")
	case err != nil, state.Flags&projectsCounted == 0:
		return unsupported("project quotas are off on this %s: %s", fs.name, fs.switchOn)
	case state.Flags&projectsEnforced == 0:
		return unsupported("this %s counts what projects occupy and does not limit it: %s", fs.name, fs.enforce)
	}
	// The state is for everyone to see. What this process may do shows here.
	_, err = inUse(fd, maxID)
	return err
}

// kindOf returns the number of a filesystem.
func kindOf(st unix.Statfs_t) int64 {
	return int64(uint32(st.Type)) //nolint:gosec // its type differs between machines, its 32 bits don't
}

// xfsWithoutQuotas reports whether the kernel's XFS was built without: it has
// statistics then, but not those of quotas.
func xfsWithoutQuotas() bool {
	_, statistics := os.Stat("/proc/fs/xfs/stat")
	_, quotas := os.Stat("/proc/fs/xfs/xqmstat")
	return statistics == nil && errors.Is(quotas, os.ErrNotExist)
}

// explain puts an error that stands for something that is not there into an
// administrator's words.
func explain(fd int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoDevice):
		return unsupported("before Linux 5.14 quotas need the filesystem's block device, which can't be seen here: %v", err)
	case errors.Is(err, unix.ENOSYS) && hasQuotactl() != nil:
		return unsupported("this kernel, or the process's seccomp profile, has no quotas (CONFIG_QUOTA)")
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESRCH):
		return unsupported("project quotas are off on this filesystem: %s", switchOn(fd))
	case errors.Is(err, unix.EPERM):
		return unsupported("the kernel lets nobody without the capability CAP_SYS_ADMIN set limits, and this process lacks it")
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return unsupported("this filesystem has no project ids: %s", switchOn(fd))
	}
	return err
}

// switchOn returns what an administrator does to get project quotas.
func switchOn(fd int) string {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil {
		if fs, ok := filesystems[kindOf(st)]; ok {
			return fs.switchOn
		}
	}
	return "use ext4 or XFS"
}
