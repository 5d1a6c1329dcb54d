//go:build linux && !mips && !mipsle && !mips64 && !mips64le && !ppc64 && !ppc64le && !sparc64

package quota

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR of linux/fs.h.
const (
	getXattr = 0x801c581f
	setXattr = 0x401c5820
)
