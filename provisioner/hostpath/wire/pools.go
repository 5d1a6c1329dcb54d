package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// PoolReport is what a server says of one directory of a pool. It travels as
// metadata of an answer, since CSI has no word for it, and an older server says
// nothing.
type PoolReport struct {
	Pool string `json:"pool"`
	// Directory is absolute on the node.
	Directory string `json:"directory"`
	// ID is the one in the directory's pool.json; "" when it is not known.
	ID string `json:"id,omitempty"`
	// Gone says that there is no pool in the directory, or not the one that was:
	// its disk is not mounted, or another one is.
	Gone bool `json:"gone,omitempty"`
	// Unread says that not all volumes in the directory could be listed.
	Unread bool `json:"unread,omitempty"`
}

// AskForPools makes ControllerGetCapabilities report on all directories.
func AskForPools(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, MetaAskForPools, "true")
}

// AsksForPools reports whether the caller did that.
func AsksForPools(ctx context.Context) bool {
	_, asks := first(ctx, MetaAskForPools)
	return asks
}

// SendPools sends reports with the answer to the call of ctx.
func SendPools(ctx context.Context, reports []PoolReport) error {
	header := metadata.MD{}
	for _, r := range reports {
		data, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode the report on a pool: %w", err)
		}
		header.Append(MetaPools, string(data))
	}
	return grpc.SetHeader(ctx, header)
}

// PoolsIn returns the reports in the header of an answer, as far as they can be
// understood; none when the server sends none.
func PoolsIn(header metadata.MD) ([]PoolReport, error) {
	var reports []PoolReport
	var failed []error
	for _, value := range header.Get(MetaPools) {
		var r PoolReport
		if err := json.Unmarshal([]byte(value), &r); err != nil {
			failed = append(failed, fmt.Errorf("the report on a pool: %w", err))
			continue
		}
		reports = append(reports, r)
	}
	return reports, errors.Join(failed...)
}

// AttachPoolID says with a call about a volume which pool it lies in.
func AttachPoolID(ctx context.Context, id string) context.Context {
	if id == "" {
		return ctx // a volume that does not say
	}
	return metadata.AppendToOutgoingContext(ctx, MetaPoolID, id)
}

// PoolID returns what the caller has attached, and whether it has.
func PoolID(ctx context.Context) (id string, ok bool) { return first(ctx, MetaPoolID) }
