package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// room is what every node has.
const room = 1 << 40

// fakes stand for the agents of all nodes. They make no directory.
type fakes struct {
	csi.UnimplementedControllerServer
}

// serveFakes answers on the addresses of all nodes, with a certificate that the
// controller has issued, until ctx ends.
func serveFakes(ctx context.Context, certificate agenttls.Source) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(agents.DefaultPort)))
	if err != nil {
		return err
	}
	const buffer = 1 << 10 // there are thousands of connections
	server := grpc.NewServer(grpc.Creds(agenttls.ServerCredentials(certificate, nil)),
		grpc.ReadBufferSize(buffer), grpc.WriteBufferSize(buffer))
	csi.RegisterControllerServer(server, &fakes{})
	go func() { _ = server.Serve(listener) }()
	context.AfterFunc(ctx, server.Stop)
	return nil
}

// CreateVolume says that it made what it was asked for.
func (*fakes) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if len(metadata.ValueFromIncomingContext(ctx, wire.MetaNode)) != 1 {
		return nil, status.Error(codes.InvalidArgument, "the node is not named")
	}
	p := req.GetParameters()
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		CapacityBytes: req.GetCapacityRange().GetRequiredBytes(),
		VolumeId:      fmt.Sprintf("%s/%s/AAAAAAAAAAAAAAAAAAAAAA", wire.DefaultPool, req.GetName()),
		VolumeContext: map[string]string{
			wire.ContextPool: wire.DefaultPool, wire.ContextDirectory: "/var/lib/berth", wire.ContextPath: p[wire.ParamPath],
			wire.ContextVolume: req.GetName(), wire.ContextOnDelete: "delete", wire.ContextQuota: wire.QuotaEnforced,
			wire.ContextClaim:    p[wire.ParamClaimNamespace] + "/" + p[wire.ParamClaimName],
			wire.ContextClaimUID: p[wire.ParamClaimUID], wire.ContextCreated: time.Now().Format(time.RFC3339Nano),
		},
	}}, nil
}

// GetCapacity says that there is room.
func (*fakes) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	return &csi.GetCapacityResponse{AvailableCapacity: room, MaximumVolumeSize: wrapperspb.Int64(room)}, nil
}

// ListVolumes says that there is nothing, since no sweep is due in a run.
func (*fakes) ListVolumes(context.Context, *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	return &csi.ListVolumesResponse{}, nil
}
