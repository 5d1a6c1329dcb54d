//go:build linux && (mips || mipsle || mips64 || mips64le || ppc64 || ppc64le || sparc64)

package quota

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR of linux/fs.h, on machines that
// number directions in their own way.
const (
	getXattr = 0x401c581f
	setXattr = 0x801c5820
)
