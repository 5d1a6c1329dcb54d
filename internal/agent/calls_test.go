package agent

import (
	"context"
	"testing"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestACallThatPanicsTakesNoOtherWithIt(t *testing.T) {
	_, err := recoverCalls(logr.Discard())(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Controller/CreateVolume"},
		func(context.Context, any) (any, error) { panic("out of bounds") })
	if status.Code(err) != codes.Internal {
		t.Errorf("error %v", err)
	}
}
