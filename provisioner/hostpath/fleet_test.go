package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// fleet is a driver for several nodes, whose servers are in this process.
type fleet struct {
	t      *testing.T
	ctx    context.Context
	driver *hostpath.Driver
	clock  *clocktesting.FakePassiveClock
	nodes  map[string]*fleetNode
	// inUse says of which nodes Kubernetes has volumes.
	inUse func(node string) bool
	// namedBy says who names a directory; nil for nobody.
	namedBy func(node, poolID, base, path, except string) (string, error)
}

type fleetNode struct {
	*corev1.Node
	base   string
	server *hostpath.Local
	calls  atomic.Int64
	// lost makes Server fail, and failing all calls.
	lost    error
	failing error
	// older has the server be one that says nothing of pools.
	older bool
	// hung fails the creation of volumes in a pool.
	hung map[string]error
	// room replaces what GetCapacity answers.
	room *csi.GetCapacityResponse
}

// newFleet makes nodes with the pool default.
func newFleet(t *testing.T, names ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, ctx: t.Context(), nodes: map[string]*fleetNode{}, clock: clocktesting.NewFakePassiveClock(time.Now())}
	for _, name := range names {
		base := t.TempDir()
		server, err := hostpath.NewLocal(node.Options{NodeName: name, Pools: map[string][]string{"default": {base}}})
		must(t, err)
		t.Cleanup(func() { server.Close() })
		f.nodes[name] = &fleetNode{base: base, server: server, Node: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: "host-" + name, "zone": name}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}}
	}
	f.restart()
	return f
}

// restart replaces the driver by one that knows nothing.
func (f *fleet) restart() {
	f.t.Helper()
	driver, err := hostpath.New(hostpath.Options{
		Nodes: f, Node: f.node, Clock: f.clock, UnreachableAfter: time.Minute,
		InUse:   func(_ context.Context, node, _, _ string) (bool, error) { return f.inUse != nil && f.inUse(node), nil },
		NamedBy: f.askedWhoNames,
	})
	must(f.t, err)
	f.driver = driver
}

func (f *fleet) node(_ context.Context, name string) (*corev1.Node, error) {
	n, ok := f.nodes[name]
	if !ok || n.Node == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return n.Node, nil
}

// Server implements hostpath.Nodes.
func (f *fleet) Server(ctx context.Context, name string) (csi.ControllerClient, error) {
	n, ok := f.nodes[name]
	if !ok {
		return nil, fmt.Errorf("node %s: %w", name, hostpath.ErrNoServer)
	}
	if n.lost != nil {
		return nil, n.lost
	}
	client, err := n.server.Server(ctx, name)
	return &watched{client, n}, err
}

// Names implements hostpath.Nodes.
func (f *fleet) Names(context.Context) ([]string, error) {
	var names []string
	for name, n := range f.nodes {
		if !errors.Is(n.lost, hostpath.ErrNoServer) {
			names = append(names, name)
		}
	}
	return names, nil
}

// watched counts the calls of a node, and fails them when it should.
type watched struct {
	csi.ControllerClient
	node *fleetNode
}

func (w *watched) CreateVolume(ctx context.Context, in *csi.CreateVolumeRequest, opts ...grpc.CallOption) (*csi.CreateVolumeResponse, error) {
	w.node.calls.Add(1)
	if w.node.failing != nil {
		return nil, w.node.failing
	}
	if err := w.node.hung[in.GetParameters()[wire.ParamPool]]; err != nil {
		return nil, err
	}
	made, err := w.ControllerClient.CreateVolume(ctx, in, opts...)
	if w.node.older {
		delete(made.GetVolume().GetVolumeContext(), wire.ContextPoolID)
	}
	return made, err
}

func (w *watched) ListVolumes(ctx context.Context, in *csi.ListVolumesRequest, opts ...grpc.CallOption) (*csi.ListVolumesResponse, error) {
	if !w.node.older {
		return w.ControllerClient.ListVolumes(ctx, in, opts...)
	}
	page, err := w.ControllerClient.ListVolumes(ctx, in)
	for _, entry := range page.GetEntries() {
		delete(entry.GetVolume().GetVolumeContext(), wire.ContextPoolID)
	}
	return page, err
}

func (w *watched) DeleteVolume(ctx context.Context, in *csi.DeleteVolumeRequest, opts ...grpc.CallOption) (*csi.DeleteVolumeResponse, error) {
	w.node.calls.Add(1)
	if w.node.failing != nil {
		return nil, w.node.failing
	}
	return w.ControllerClient.DeleteVolume(ctx, in, opts...)
}

func (w *watched) ControllerGetCapabilities(ctx context.Context, in *csi.ControllerGetCapabilitiesRequest, opts ...grpc.CallOption) (*csi.ControllerGetCapabilitiesResponse, error) {
	if w.node.failing != nil {
		return nil, w.node.failing
	}
	if w.node.older {
		return w.ControllerClient.ControllerGetCapabilities(ctx, in)
	}
	return w.ControllerClient.ControllerGetCapabilities(ctx, in, opts...)
}

func (w *watched) GetCapacity(ctx context.Context, in *csi.GetCapacityRequest, opts ...grpc.CallOption) (*csi.GetCapacityResponse, error) {
	switch {
	case w.node.failing != nil:
		return nil, w.node.failing
	case w.node.room != nil:
		return w.node.room, nil
	}
	return w.ControllerClient.GetCapacity(ctx, in, opts...)
}

func (f *fleet) roomOn(name string, bytes int64) {
	f.nodes[name].room = &csi.GetCapacityResponse{AvailableCapacity: bytes, MaximumVolumeSize: wrapperspb.Int64(bytes)}
}

// on asks for a claim whose pod was scheduled to a node; "" for anywhere.
func on(name string, parameters ...string) controller.ProvisionOptions {
	opts := askFor(parameters...)
	opts.SelectedNodeName = name
	return opts
}

func (f *fleet) provision(opts controller.ProvisionOptions) *corev1.PersistentVolume {
	f.t.Helper()
	volume, state, err := f.driver.Provision(f.ctx, opts)
	must(f.t, err)
	if state != controller.ProvisioningFinished {
		f.t.Errorf("state = %s", state)
	}
	return bound(volume, opts)
}

func (f *fleet) wantReschedule(opts controller.ProvisionOptions, words ...string) {
	f.t.Helper()
	_, state, err := f.driver.Provision(f.ctx, opts)
	if err == nil || state != controller.ProvisioningReschedule || provisioner.IsInfeasible(err) {
		f.t.Errorf("Provision = %s, %v, want the claim to go back to the scheduler", state, err)
		return
	}
	for _, word := range append(words, opts.SelectedNodeName) {
		if !strings.Contains(err.Error(), word) {
			f.t.Errorf("%v does not say %q", err, word)
		}
	}
	if strings.Contains(err.Error(), "rpc error") {
		f.t.Errorf("%v speaks of gRPC", err)
	}
}
