package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// errBusy says that a call is at work on a volume, as CSI has it said.
func errBusy(volume string) error {
	return status.Errorf(codes.Aborted, "an operation on volume %s is under way", volume)
}

// refusal is an error with the code that it travels with.
type refusal struct {
	code codes.Code
	error
}

func (r *refusal) Unwrap() error { return r.error }

// refuse returns an error with a code, which the text below belongs to.
func refuse(code codes.Code, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// withCode gives err a code.
func withCode(code codes.Code, err error) error { return &refusal{code, err} }

// answer turns the error of a call into a gRPC status.
func answer(err error) error {
	if err == nil {
		return nil
	}
	return wire.Status(codeOf(err), err)
}

// codeOf returns the code that CSI has for err.
func codeOf(err error) codes.Code {
	var (
		refused *refusal
		silent  *silentError
	)
	st, hasStatus := status.FromError(err)
	switch {
	case errors.As(err, &refused):
		return refused.code
	case hasStatus:
		return st.Code() // infeasible errors are InvalidArgument
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.As(err, &silent):
		return codes.Unavailable
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return codes.ResourceExhausted
	case errors.Is(err, directory.ErrNoDirectory):
		return codes.NotFound
	case errors.Is(err, directory.ErrConflict):
		return codes.Aborted // another volume is just leaving the path
	case isPrecondition(err):
		return codes.FailedPrecondition
	}
	return codes.Internal
}

// isPrecondition reports whether err says that a directory, or what is in it, is
// not as it has to be, which somebody has to put right.
func isPrecondition(err error) bool {
	for _, known := range []error{
		directory.ErrNotInitialised, directory.ErrWrongPool, directory.ErrDamagedMarker, directory.ErrNotOwned,
		directory.ErrExists, directory.ErrNotADirectory, directory.ErrLocked, provisioner.ErrNotEmpty,
		fs.ErrNotExist, fs.ErrPermission, syscall.ENOTDIR, syscall.ELOOP, syscall.EROFS, wire.ErrNoPath,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}
