package wire

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// The reasons that an error carries beside its code, for those that the other
// end has to tell from others of that code.
const (
	// ReasonNotEmpty stands for provisioner.ErrNotEmpty.
	ReasonNotEmpty = "NOT_EMPTY"
	// ReasonInfeasible stands for a *provisioner.InfeasibleError.
	ReasonInfeasible = "INFEASIBLE"
	// ReasonNewPool says that a directory was never used and will be initialised
	// only if whoever knows the cluster says so (MetaNewPool).
	ReasonNewPool = "NEW_POOL"
	// ReasonNoPath says that there is no volume that an earlier call has made,
	// as an empty ParamPath asks for.
	ReasonNoPath = "NO_PATH"
	// ReasonNoDirectory stands for directory.ErrNoDirectory.
	ReasonNoDirectory = "NO_DIRECTORY"
)

// The keys of what ReasonInfeasible and ReasonNewPool add.
const (
	detailField     = "field"
	detailValue     = "value"
	detailProblem   = "problem"
	detailDirectory = "directory"
)

const errorDomain = "berth.storage"

// NewPoolError says that a directory would have to be initialised as a pool.
type NewPoolError struct {
	// Directory is the absolute one in question.
	Directory string
}

// Error says that nobody was asked.
func (e *NewPoolError) Error() string {
	return "nobody has said that it may become a pool"
}

// ErrNoPath is what ReasonNoPath stands for.
var ErrNoPath = errors.New("no such volume was made before")

// Status turns err into what travels: code, the whole text, and what Error needs
// to make the typed errors in it anew.
func Status(code codes.Code, err error) error {
	st := status.New(code, err.Error())
	detail := &errdetails.ErrorInfo{Domain: errorDomain}
	var (
		infeasible *provisioner.InfeasibleError
		newPool    *NewPoolError
	)
	switch {
	case errors.As(err, &infeasible):
		detail.Reason = ReasonInfeasible
		detail.Metadata = map[string]string{
			detailField: infeasible.Field, detailValue: infeasible.Value, detailProblem: infeasible.Problem,
		}
	case errors.As(err, &newPool):
		detail.Reason = ReasonNewPool
		detail.Metadata = map[string]string{detailDirectory: newPool.Directory}
	case errors.Is(err, provisioner.ErrNotEmpty):
		detail.Reason = ReasonNotEmpty
	case errors.Is(err, ErrNoPath):
		detail.Reason = ReasonNoPath
	case errors.Is(err, directory.ErrNoDirectory):
		detail.Reason = ReasonNoDirectory
	default:
		return st.Err()
	}
	if detailed, err := st.WithDetails(detail); err == nil {
		st = detailed
	}
	return st.Err()
}

// RemoteError is an error that a node server answered with. Its text is the
// server's, without a word about gRPC.
type RemoteError struct {
	Code  codes.Code
	text  string
	cause error
}

// Error returns the server's text.
func (e *RemoteError) Error() string { return e.text }

// Unwrap returns the typed error that the server had, if it had one.
func (e *RemoteError) Unwrap() error { return e.cause }

// GRPCStatus implements the interface that status.FromError looks for.
func (e *RemoteError) GRPCStatus() *status.Status { return status.New(e.Code, e.text) }

// Error turns what a gRPC call returned into a *RemoteError, whatever it is, and
// nil into nil.
func Error(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	remote := &RemoteError{Code: st.Code(), text: st.Message()}
	switch st.Code() {
	case codes.Canceled:
		remote.cause = context.Canceled
	case codes.DeadlineExceeded:
		remote.cause = context.DeadlineExceeded
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			remote.cause = cause(info)
		}
	}
	return remote
}

func cause(info *errdetails.ErrorInfo) error {
	more := info.GetMetadata()
	switch info.GetReason() {
	case ReasonInfeasible:
		return &provisioner.InfeasibleError{Field: more[detailField], Value: more[detailValue], Problem: more[detailProblem]}
	case ReasonNewPool:
		return &NewPoolError{Directory: more[detailDirectory]}
	case ReasonNotEmpty:
		return provisioner.ErrNotEmpty
	case ReasonNoPath:
		return ErrNoPath
	case ReasonNoDirectory:
		return directory.ErrNoDirectory
	}
	return nil
}

// CodeOf returns the code of a *RemoteError in err, and codes.Unknown when there
// is none.
func CodeOf(err error) codes.Code {
	var remote *RemoteError
	if !errors.As(err, &remote) {
		return codes.Unknown
	}
	return remote.Code
}
