//go:build !linux

package quota

import "github.com/berth-storage/berth/provisioner/directory"

// New returns nil, which is no quota: only Linux has the system calls.
func New(Range) directory.Quota { return nil }
