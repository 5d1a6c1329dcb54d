package agent_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
)

// leftOut says why a spec of the suite does not apply, by how the spec's name
// begins or what its own reason says. Whatever else is skipped fails the test.
var leftOut = []struct{ name, why string }{
	{"Node Service", "there is no CSI node plugin: kubelet itself mounts local and hostPath volumes"},
	{"ControllerPublishVolume", "nothing is attached: the capability PUBLISH_UNPUBLISH_VOLUME is not claimed"},
	{"ControllerUnpublishVolume", "nothing is attached: the capability PUBLISH_UNPUBLISH_VOLUME is not claimed"},
	{"GroupController", "there are no snapshots: the plugin capability GROUP_CONTROLLER_SERVICE is not claimed"},
	{"Snapshot", "there are no snapshots: CREATE_DELETE_SNAPSHOT, LIST_SNAPSHOTS and GET_SNAPSHOT are not claimed"},
	{"source snapshot", "there are no snapshots: CREATE_DELETE_SNAPSHOT is not claimed"},
	{"source volume", "volumes are not cloned: CLONE_VOLUME is not claimed"},
	{"volume attribute class", "volumes have no mutable parameters: MODIFY_VOLUME is not claimed"},
	{"volume lifecycle", "it attaches a volume and mounts it: PUBLISH_UNPUBLISH_VOLUME is not claimed, and there is no node plugin"},
	{"ModifyVolume", "volumes have no mutable parameters: MODIFY_VOLUME is not claimed"},
	{"ControllerListVolumeHealth", "the health of a volume is told when asked for, and not listed: LIST_VOLUME_HEALTH is not claimed"},
	{"pagination should detect volumes added between pages", "the suite itself has it pending (kubernetes-csi/csi-test#223); TestListingGoesOnWhereItStopped takes its place"},
}

var sanityRan atomic.Bool

// TestCSISanity runs the conformance suite of Kubernetes' storage group on an
// agent, as its controller, and lists what of it does not apply.
func TestCSISanity(t *testing.T) {
	if sanityRan.Swap(true) {
		t.Skip("Ginkgo runs a suite once per process")
	}
	s := newSite(t)
	s.certify()
	source, err := s.authority.Source(s.authority, tlstest.Controller)
	s.ok(err)
	config := sanity.NewTestConfig()
	config.Address = s.address
	config.DialOptions = []grpc.DialOption{
		grpc.WithTransportCredentials(agenttls.ClientCredentials(source)),
		grpc.WithUnaryInterceptor(asController),
	}
	config.TargetPath = filepath.Join(t.TempDir(), "target")
	config.StagingPath = filepath.Join(t.TempDir(), "staging")
	specs := sanity.GinkgoTest(&config)
	defer specs.Finalize()

	ran := 0
	ginkgo.ReportAfterSuite("skipped specs", func(report types.Report) {
		for _, spec := range report.SpecReports {
			switch {
			case spec.LeafNodeType != types.NodeTypeIt:
			case spec.State == types.SpecStatePassed:
				ran++
			case spec.State.Is(types.SpecStateSkipped | types.SpecStatePending):
				why := whyLeftOut(spec.FullText())
				if why == "" {
					t.Errorf("skipped, and nobody says why: %s: %s", spec.FullText(), spec.Failure.Message)
				}
				t.Logf("skipped: %s: %s", spec.FullText(), why)
			}
		}
	})
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.SkipStrings = []string{"Node Service"}
	reporter.Succinct, reporter.NoColor = true, true
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "CSI sanity", suite, reporter)
	if t.Logf("%d specs passed", ran); ran < 27 {
		t.Errorf("no more than %d specs ran", ran)
	}
}

func whyLeftOut(spec string) string {
	i := slices.IndexFunc(leftOut, func(known struct{ name, why string }) bool { return strings.Contains(spec, known.name) })
	if i < 0 {
		return ""
	}
	return leftOut[i].why
}

// asController says which node a call is meant for, as the controller does, and
// answers for the node service that there is none of: the suite asks it before it
// cleans up.
func asController(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	switch method {
	case csi.Node_NodeGetCapabilities_FullMethodName:
		return nil // it has none
	case csi.Node_NodeUnpublishVolume_FullMethodName:
		return status.Error(codes.NotFound, "nothing is published")
	}
	return invoke(to(ctx, "n1"), method, req, reply, conn, o...)
}
