package wire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

func TestAVolumeIDIsReadAsItWasWritten(t *testing.T) {
	for _, id := range []VolumeID{
		NewVolumeID("default", "pvc-1", "uid-1", "ns-claim-pvc-1"),
		NewVolumeID("p", strings.Repeat("v", 240), "", ""),
		NewVolumeID(strings.Repeat("p", 63), "a.b.c", "uid", "../../etc"),
	} {
		got, err := ParseVolumeID(id.String())
		if err != nil || got != id {
			t.Errorf("%s is read as %+v, %v", id, got, err)
		}
	}
	// CSI allows 128 bytes, which is enough for every name that Kubernetes gives.
	longest := NewVolumeID(strings.Repeat("p", 63), "pvc-00000000-0000-0000-0000-000000000000", "uid", "path")
	if n := len(longest.String()); n > 128 {
		t.Errorf("an id has %d bytes", n)
	}
}

func TestASealIsOfOneClaimAndOnePath(t *testing.T) {
	seen := map[string]string{}
	for _, of := range [][2]string{{"u", "p"}, {"up", ""}, {"", "up"}, {"u", "p/"}, {"u\x00", "p"}, {"v", "p"}} {
		seal := Seal(types.UID(of[0]), of[1])
		if other, taken := seen[seal]; taken {
			t.Errorf("%q and %s have the seal %s", of, other, seal)
		}
		seen[seal] = fmt.Sprintf("%q", of)
	}
}

func FuzzParseVolumeID(f *testing.F) {
	f.Add("default/pvc-1/" + Seal("uid", "path"))
	f.Add("../..//etc")
	f.Add("a/b\x00/c")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseVolumeID(s)
		if err != nil {
			return
		}
		if id.String() != s || strings.ContainsAny(id.Pool+id.Volume+id.Seal, "/\x00") || strings.HasPrefix(id.Volume, ".") {
			t.Errorf("%q is read as %+v", s, id)
		}
	})
}

func TestTypedErrorsTravel(t *testing.T) {
	for name, err := range map[string]error{
		"infeasible": provisioner.Infeasible("field", "value", "problem"),
		"not empty":  provisioner.ErrNotEmpty,
		"no path":    ErrNoPath,
		"nothing":    directory.ErrNoDirectory,
		"new pool":   &NewPoolError{Directory: "/srv/berth"},
		"plain":      errors.New("something"),
	} {
		t.Run(name, func(t *testing.T) {
			wrapped := fmt.Errorf("pool default: %w", err)
			got := Error(Status(codes.FailedPrecondition, wrapped))
			if got.Error() != wrapped.Error() || CodeOf(got) != codes.FailedPrecondition {
				t.Errorf("%v with code %s arrives as %v with code %s", wrapped, codes.FailedPrecondition, got, CodeOf(got))
			}
			var infeasible *provisioner.InfeasibleError
			var newPool *NewPoolError
			switch name {
			case "infeasible":
				if !errors.As(got, &infeasible) || *infeasible != (provisioner.InfeasibleError{Field: "field", Value: "value", Problem: "problem"}) {
					t.Errorf("%+v", infeasible)
				}
			case "new pool":
				if !errors.As(got, &newPool) || newPool.Directory != "/srv/berth" {
					t.Errorf("%+v", newPool)
				}
			case "plain":
				if errors.Unwrap(got) != nil {
					t.Errorf("%v came from nowhere", errors.Unwrap(got))
				}
			default:
				if !errors.Is(got, err) {
					t.Errorf("%v is not %v", got, err)
				}
			}
		})
	}
	if Error(nil) != nil {
		t.Error("no error is one")
	}
	if !provisioner.IsInfeasible(Error(Status(codes.InvalidArgument, errors.New("x")))) {
		t.Error("what is invalid is not infeasible")
	}
	if err := Error(status.FromContextError(context.DeadlineExceeded).Err()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not the deadline's", err)
	}
}

// TestWhatIsAttachedArrives: paths may hold any character.
func TestWhatIsAttachedArrives(t *testing.T) {
	e := Expectation{Source: "/srv/ü\n/x"}
	e.ClaimUID, e.Path, e.OnDelete = "uid", "ü\n/x", directory.OnDeleteArchive
	ctx := AttachIfEmpty(e.Attach(t.Context()), "/srv/ü")
	ctx = AttachNewPool(AttachNewPool(ctx, "/a", ""), "/b", "it is away\n")
	sent, _ := metadata.FromOutgoingContext(ctx)
	received := metadata.NewIncomingContext(t.Context(), sent)
	got, ok := ExpectationFrom(received)
	if diff := cmp.Diff(e, got); diff != "" || !ok {
		t.Errorf("%t %s", ok, diff)
	}
	if source, ok := IfEmpty(received); !ok || source != "/srv/ü" {
		t.Errorf("IfEmpty = %q, %t", source, ok)
	}
	for directory, want := range map[string]string{"/a": "true ", "/b": "false it is away\n", "/c": "false "} {
		allowed, refusal := NewPool(received, directory)
		if got := fmt.Sprintf("%t %s", allowed, refusal); got != want {
			t.Errorf("%s: %q, want %q", directory, got, want)
		}
	}
	if _, ok := ExpectationFrom(t.Context()); ok {
		t.Error("an expectation that nobody has")
	}
}
