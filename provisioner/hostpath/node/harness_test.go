package node_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

const gi = 1 << 30

// options are those of a server whose pool default has so many directories, which
// an administrator has released for use.
func options(t *testing.T, directories int) node.Options {
	t.Helper()
	o := node.Options{NodeName: "node-1", Pools: map[string][]string{}, Log: logr.Discard()}
	for range directories {
		o.Pools[wire.DefaultPool] = append(o.Pools[wire.DefaultPool], released(t))
	}
	return o
}

// released makes a directory that is empty but for .berth.
func released(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	must(t, os.Mkdir(filepath.Join(base, ".berth"), 0o700))
	return base
}

func newServer(t *testing.T, o node.Options) *node.Server {
	t.Helper()
	s, err := node.New(o)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// dial connects to s by gRPC, in memory.
func dial(t *testing.T, s *node.Server) csi.ControllerClient {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	s.Register(server)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
	return csi.NewControllerClient(conn)
}

// ask is a request for a volume whose parameters are name, value, ….
func ask(name string, size int64, parameters ...string) *csi.CreateVolumeRequest {
	req := &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{mount(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
		Parameters:         map[string]string{wire.ParamClaimUID: "uid-" + name},
	}
	for i := 0; i < len(parameters); i += 2 {
		req.Parameters[parameters[i]] = parameters[i+1]
	}
	return req
}

func mount(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func create(t *testing.T, c csi.ControllerClient, req *csi.CreateVolumeRequest) *csi.Volume {
	t.Helper()
	resp, err := c.CreateVolume(t.Context(), req)
	must(t, err)
	return resp.GetVolume()
}

func remove(t *testing.T, c csi.ControllerClient, id string) {
	t.Helper()
	_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	must(t, err)
}

// directoryOf returns where a volume lies.
func directoryOf(v *csi.Volume) string {
	return filepath.Join(v.GetVolumeContext()[wire.ContextDirectory], v.GetVolumeContext()[wire.ContextPath])
}

// wantCode checks the code of err and that its text has words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("error %v, want code %s", err, code)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pvName(n int) string { return fmt.Sprintf("pvc-%04d", n) }
