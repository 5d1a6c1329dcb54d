//go:build !linux

package directory

import (
	"context"
	"errors"
	"syscall"
)

// Local needs Linux; elsewhere the package compiles, for tools that only read
// its types.
type Local struct{}

// LocalOptions are the choices NewLocal leaves to an administrator.
type LocalOptions struct {
	RequireMount bool
}

// NewLocal fails: only Linux has the system calls that make it safe.
func NewLocal(string, LocalOptions) (*Local, error) { return nil, errors.ErrUnsupported }

// CheckBase fails, as NewLocal does.
func CheckBase(string) error { return errors.ErrUnsupported }

// Root fails.
func (*Local) Root(context.Context) (Dir, error) { return nil, errors.ErrUnsupported }

// Space fails.
func (*Local) Space(context.Context) (Space, error) { return Space{}, errors.ErrUnsupported }

// damageErrnosHere are none.
var damageErrnosHere []syscall.Errno
