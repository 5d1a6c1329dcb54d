package directory

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// accessListName is the extended attribute that Linux has the list in.
const accessListName = "system.posix_acl_access"

// noAccessList are what the kernel and filesystems answer when there is none, or
// when they know none.
var noAccessList = []error{unix.ENODATA, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL}

// readAccessList returns the POSIX access control list of a directory of this
// machine, or nil when it has none beside its mode. Others are not asked.
func readAccessList(dir Dir) ([]byte, error) {
	handle, ok := dir.(Handle)
	if !ok {
		return nil, nil
	}
	var data []byte
	err := handle.Control("look for an access control list", func(fd int) error {
		n, err := unix.Fgetxattr(fd, accessListName, nil)
		if err != nil {
			return err
		}
		data = make([]byte, n)
		n, err = unix.Fgetxattr(fd, accessListName, data)
		data = data[:max(n, 0)]
		return err
	})
	if slices.ContainsFunc(noAccessList, func(none error) bool { return errors.Is(err, none) }) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}
