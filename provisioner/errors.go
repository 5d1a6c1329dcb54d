package provisioner

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrNotEmpty is returned by Inventory.Discard for storage that holds data.
var ErrNotEmpty = errors.New("the volume is not empty")

// InfeasibleError says that a request can't succeed until a claim or a class
// is changed. It is reported once and retried slowly.
//
// It carries the gRPC code InvalidArgument, which is how
// sig-storage-lib-external-provisioner recognises such errors, so a driver
// behaves alike under Berth's controllers and under the library's.
type InfeasibleError struct {
	// Field is what has to change, as a user would write it, for example
	// "StorageClass parameter pathPattern".
	Field string
	// Value is what the field holds now.
	Value string
	// Problem says what is wrong with Value, and how to put it right.
	Problem string
}

// Infeasible returns an InfeasibleError for field, whose value is wrong in the
// way that format and args say.
func Infeasible(field, value, format string, args ...any) error {
	return &InfeasibleError{Field: field, Value: value, Problem: fmt.Sprintf(format, args...)}
}

// maxShownValue bounds how much of a value an error repeats: an event's message
// may have 1,024 bytes, and a value may be as long as its author likes.
const maxShownValue = 128

// Error names the field, the value and the fix.
func (e *InfeasibleError) Error() string {
	value := e.Value
	if len(value) > maxShownValue {
		value = strings.ToValidUTF8(value[:maxShownValue], "") + "…"
	}
	return fmt.Sprintf("%s: %q: %s", e.Field, value, e.Problem)
}

// GRPCStatus implements the interface that status.FromError looks for.
func (e *InfeasibleError) GRPCStatus() *status.Status {
	return status.New(codes.InvalidArgument, e.Error())
}

// IsInfeasible reports whether err, or an error it wraps, can't be overcome by
// trying again: an InfeasibleError, or a gRPC status of InvalidArgument, the
// one code sig-storage-lib-external-provisioner treats so
// (controller/controller.go, markForSlowRetry).
func IsInfeasible(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.InvalidArgument
}

// UnavailableError says that storage can't be reached for now, through no fault
// of a claim or a class. A driver that knows when it is worth another try says
// so, which takes the place of the caller's exponential backoff: when a server
// is back, all its claims are served soon, whatever they waited before.
type UnavailableError struct {
	// RetryAfter is when to try again, and more than 0.
	RetryAfter time.Duration
	// Err is what happened.
	Err error
	// Premature says that nothing is known to be wrong yet: the storage was not
	// asked, and the next try will tell. No event is made of it.
	Premature bool
}

// Error says what happened.
func (e *UnavailableError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *UnavailableError) Unwrap() error { return e.Err }

// RetryAfter returns when err, or an error it wraps, asks for another try;
// false when it does not say.
func RetryAfter(err error) (time.Duration, bool) {
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) {
		return 0, false
	}
	return unavailable.RetryAfter, true
}

// IsPremature reports whether err, or an error it wraps, is an UnavailableError
// of which nobody has to be told.
func IsPremature(err error) bool {
	var unavailable *UnavailableError
	return errors.As(err, &unavailable) && unavailable.Premature
}
