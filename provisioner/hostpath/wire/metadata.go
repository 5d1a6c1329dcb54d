package wire

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Expectation is what a PersistentVolume says of its directory.
type Expectation struct {
	directory.Expectation
	// Source is the directory that it shows to pods, absolute on the node.
	Source string
}

// Attach adds e to what a call with ctx sends.
func (e Expectation) Attach(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx,
		MetaClaimUID, string(e.ClaimUID), MetaPath, e.Path, MetaSource, e.Source, MetaOnDelete, string(e.OnDelete))
}

// ExpectationFrom returns what the caller has attached, and whether it has.
func ExpectationFrom(ctx context.Context) (Expectation, bool) {
	claim, ok := first(ctx, MetaClaimUID)
	if !ok {
		return Expectation{}, false
	}
	e := Expectation{Expectation: OnDelete(ctx)}
	e.ClaimUID = types.UID(claim)
	e.Path, _ = first(ctx, MetaPath)
	e.Source, _ = first(ctx, MetaSource)
	return e, true
}

// OnDelete returns an expectation of nothing but what the caller wants done with
// the directory.
func OnDelete(ctx context.Context) directory.Expectation {
	value, _ := first(ctx, MetaOnDelete)
	return directory.Expectation{OnDelete: directory.OnDelete(value)}
}

// AttachIfEmpty makes DeleteVolume take back the volume whose directory is source,
// absolute on the node, rather than delete it.
func AttachIfEmpty(ctx context.Context, source string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, MetaIfEmpty, source)
}

// IfEmpty reports whether the caller has attached that.
func IfEmpty(ctx context.Context) (source string, ok bool) { return first(ctx, MetaIfEmpty) }

// AttachNewPool says that directory may become a pool, or, with a reason, that
// it must not.
func AttachNewPool(ctx context.Context, directory, refusal string) context.Context {
	if refusal == "" {
		return metadata.AppendToOutgoingContext(ctx, MetaNewPool, directory)
	}
	return metadata.AppendToOutgoingContext(ctx, MetaRefusedPool, directory+"\x00"+refusal)
}

// NewPool reports what the caller has said of directory: that it may become a
// pool, why it must not, or nothing.
func NewPool(ctx context.Context, directory string) (allowed bool, refusal string) {
	for _, value := range all(ctx, MetaRefusedPool) {
		if refused, why, ok := strings.Cut(value, "\x00"); ok && refused == directory {
			return false, why
		}
	}
	for _, value := range all(ctx, MetaNewPool) {
		if value == directory {
			return true, ""
		}
	}
	return false, ""
}

func first(ctx context.Context, key string) (string, bool) {
	values := all(ctx, key)
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

func all(ctx context.Context, key string) []string {
	return metadata.ValueFromIncomingContext(ctx, key)
}
