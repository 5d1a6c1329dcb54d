//go:build !linux

package directory

import "errors"

// allocated fails: the filesystems of other systems are not reached.
func allocated(Dir, string) (int64, error) { return 0, errors.ErrUnsupported }
