package node

import (
	"context"
	"errors"
	"io/fs"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// GetPluginInfo says who answers, and for which node.
func (s *Server) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	version := s.options.Version
	if version == "" {
		version = "unknown"
	}
	return &csi.GetPluginInfoResponse{
		Name: wire.PluginName, VendorVersion: version,
		Manifest: map[string]string{wire.ManifestNode: s.options.NodeName},
	}, nil
}

// GetPluginCapabilities says what the server can do.
func (s *Server) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_CONTROLLER_SERVICE,
		}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{
			Type: csi.PluginCapability_VolumeExpansion_ONLINE,
		}}},
	}}, nil
}

// Probe says that the server works. It looks at no disk: a dead one costs its own
// volumes, and the node is asked for the others.
func (s *Server) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// ControllerGetCapabilities says which calls there are, and, when it is asked,
// which pools.
func (s *Server) ControllerGetCapabilities(ctx context.Context, _ *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	if wire.AsksForPools(ctx) {
		s.report(ctx, s.reports(ctx))
	}
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: c}},
		})
	}
	return resp, nil
}

// illness says what is wrong with a volume whose directory could not be opened.
func illness(err error) *csi.VolumeHealth_VolumeHealthEntry {
	entry := &csi.VolumeHealth_VolumeHealthEntry{Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: "DirectoryUnreadable", Message: err.Error()}
	var silent *silentError
	switch {
	case errors.As(err, &silent):
		entry.Reason = "DiskSilent"
	case errors.Is(err, directory.ErrNotADirectory):
		entry.Reason = "NotADirectory"
	case errors.Is(err, fs.ErrNotExist):
		entry.Status, entry.Reason = csi.VolumeHealthErrorType_DATA_LOSS, "DirectoryGone"
	}
	return entry
}
