package provisioner

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func TestInfeasibleNamesFieldValueAndFix(t *testing.T) {
	err := Infeasible("StorageClass parameter mode", "999", "use octal digits, for example %s", "0770")
	const want = `StorageClass parameter mode: "999": use octal digits, for example 0770`
	if got := err.Error(); got != want {
		t.Errorf("Error() = %s\nwant      %s", got, want)
	}
}

func TestInfeasibleClipsLongValues(t *testing.T) {
	value := strings.Repeat("v", maxShownValue) + strings.Repeat("w", 10_000)
	got := Infeasible("annotation x", value, "the fix").Error()
	if strings.Contains(got, "w") {
		t.Errorf("the message repeats more than %d bytes of the value: %s", maxShownValue, got)
	}
	if !strings.HasPrefix(got, "annotation x") || !strings.HasSuffix(got, "…\": the fix") {
		t.Errorf("the clipped value has taken field or fix with it, or does not say that it was clipped: %s", got)
	}
	exact := strings.Repeat("v", maxShownValue)
	if got := Infeasible("f", exact, "p").Error(); strings.Contains(got, "…") {
		t.Errorf("a value of %d bytes was clipped: %s", maxShownValue, got)
	}
}

func TestInfeasibleShowsControlCharactersEscaped(t *testing.T) {
	got := Infeasible("label x", "a\n\x1b[31mb", "p").Error()
	if strings.ContainsAny(got, "\n\x1b") {
		t.Errorf("the message holds control characters of the value: %q", got)
	}
}

func TestInfeasibleIsInvalidArgument(t *testing.T) {
	wrapped := fmt.Errorf("provision: %w", Infeasible("f", "v", "p"))
	st, ok := status.FromError(wrapped)
	if !ok || st.Code() != codes.InvalidArgument {
		t.Errorf("status.FromError = %v, %v; want code InvalidArgument, as the library looks for", st, ok)
	}
	if !strings.Contains(st.Message(), `f: "v": p`) {
		t.Errorf("the status says %q, without the error's text", st.Message())
	}
}

func TestOnlyInvalidArgumentIsInfeasible(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"InfeasibleError":           {Infeasible("f", "v", "p"), true},
		"InfeasibleError, wrapped":  {fmt.Errorf("a: %w", fmt.Errorf("b: %w", Infeasible("f", "v", "p"))), true},
		"a driver's gRPC status":    {status.Error(codes.InvalidArgument, "no"), true},
		"a gRPC status, wrapped":    {fmt.Errorf("call: %w", status.Error(codes.InvalidArgument, "no")), true},
		"nothing":                   {nil, false},
		"any other error":           {errors.New("connection refused"), false},
		"ResourceExhausted":         {status.Error(codes.ResourceExhausted, "full"), false},
		"Aborted":                   {status.Error(codes.Aborted, "running"), false},
		"OutOfRange":                {status.Error(codes.OutOfRange, "too large"), false},
		"an error that only quotes": {errors.New("rpc error: code = InvalidArgument"), false},
		"IgnoredError":              {&controller.IgnoredError{Reason: "r"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := IsInfeasible(tt.err); got != tt.want {
				t.Errorf("IsInfeasible(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestIgnoredIsFoundThroughWrapping(t *testing.T) {
	if !IsIgnored(fmt.Errorf("delete: %w", &controller.IgnoredError{Reason: "another's"})) {
		t.Error("a wrapped IgnoredError was not found")
	}
	if IsIgnored(nil) || IsIgnored(errors.New("ignored because of nothing")) {
		t.Error("something else passed for an IgnoredError")
	}
}
