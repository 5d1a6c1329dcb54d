package agents_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/agenttls/tlstest"
	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// GetCapacity counts calls, and answers as the test says.
func (s *server) GetCapacity(ctx context.Context, _ *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	s.mu.Lock()
	s.calls++
	s.inside++
	s.most = max(s.most, s.inside)
	for _, node := range metadata.ValueFromIncomingContext(ctx, wire.MetaNode) {
		s.nodes[node] = true
	}
	if p, ok := peer.FromContext(ctx); ok {
		s.peers[p.Addr.String()] = true
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inside--
	}()
	return s.capacity(ctx)
}

func (s *server) counts() (calls, connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, len(s.peers)
}

// hang never answers.
func hang(t *testing.T) func(context.Context) (*csi.GetCapacityResponse, error) {
	return func(context.Context) (*csi.GetCapacityResponse, error) {
		<-t.Context().Done()
		return nil, status.Error(codes.Internal, "the test is over")
	}
}

// wantUnavailable makes sure that err asks for another try soon, and says text.
func wantUnavailable(t *testing.T, err error, text string) {
	t.Helper()
	wait, ok := provisioner.RetryAfter(err)
	if !ok || wait <= 0 || wait > 30*time.Second {
		t.Errorf("error %v, retry after %s: want one to be tried again within 30 s", err, wait)
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one with %q", err, text)
	}
}

// eventually waits for longer than a gate stays closed.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	gomega.NewWithT(t).Eventually(f).WithTimeout(2 * gate.ReopenMax).WithPolling(20 * time.Millisecond).Should(gomega.Succeed())
}

func TestAnAgentIsCalledOnItsNode(t *testing.T) {
	s := newSite(t)
	one, two := s.serve("127.0.1.1", roomy), s.serve("127.0.1.2", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true), at("n2", "127.0.1.2", true))
	for range 3 {
		s.ok(s.call("n1"))
	}
	if calls, connections := one.counts(); calls != 3 || connections != 1 || !one.nodes["n1"] {
		t.Errorf("%d calls for %v over %d connections", calls, one.nodes, connections)
	}
	if calls, _ := two.counts(); calls != 0 {
		t.Errorf("%d calls on the other node", calls)
	}
}

func TestNodesWithoutAnAgentAreToldApart(t *testing.T) {
	s := newSite(t)
	s.endpoints("a", at("n1", "127.0.1.1", false))
	if err := s.call("n2"); !errors.Is(err, hostpath.ErrNoServer) || !strings.Contains(err.Error(), "n2") {
		t.Errorf("error %v", err)
	}
	err := s.call("n1")
	wantUnavailable(t, err, fmt.Sprintf("agent on node n1 (127.0.1.1:%d): its pod is not ready", s.port))
	if errors.Is(err, hostpath.ErrNoServer) {
		t.Errorf("there is an agent: %v", err)
	}
}

func TestTheServiceTellsThePort(t *testing.T) {
	s := newSite(t, func(o *agents.Options) { o.Port = 0 })
	s.endpoints("a", at("n1", "127.0.1.1", true))
	s.serve("127.0.1.1", roomy)
	wantUnavailable(t, s.call("n1"), fmt.Sprintf("127.0.1.1:%d", agents.DefaultPort))
	named := func(name string, port int) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: ptr.To(int32(port))}
	}
	for _, ports := range [][]discoveryv1.EndpointPort{
		{named("", s.port)},
		{named("metrics", 1), named(agents.PortName, s.port)},
	} {
		slice := &discoveryv1.EndpointSlice{}
		s.ok(s.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "a"}, slice))
		slice.Ports = ports
		s.ok(s.client.Update(t.Context(), slice))
		s.ok(s.call("n1"))
	}
}

func TestNamesAreOfAllAgents(t *testing.T) {
	s := newSite(t)
	s.endpoints("a", at("n1", "127.0.1.1", true), at("n2", "127.0.1.2", false))
	s.endpoints("b", at("n3", "127.0.1.3", true), at("n1", "127.0.1.4", false))
	names, err := s.agents.Names(t.Context())
	s.ok(err)
	slices.Sort(names)
	if !slices.Equal(names, []string{"n1", "n2", "n3"}) {
		t.Errorf("names %v", names)
	}
}

func TestADeadAgentIsUnavailable(t *testing.T) {
	s := newSite(t)
	s.endpoints("a", at("n1", "127.0.1.1", true))
	wantUnavailable(t, s.call("n1"), fmt.Sprintf("agent on node n1 (127.0.1.1:%d): connect: connection refused", s.port))
	// From now on it is not even tried.
	start := time.Now()
	for range 100 {
		wantUnavailable(t, s.call("n1"), "connection refused")
	}
	if took := time.Since(start); took > gate.ReopenMin {
		t.Errorf("100 calls took %s", took)
	}
	s.serve("127.0.1.1", roomy)
	eventually(t, func() error { return s.call("n1") })
}

func TestAnAgentThatHangsIsUnavailableAfterTheTimeout(t *testing.T) {
	s := newSite(t)
	s.serve("127.0.1.1", hang(t))
	s.endpoints("a", at("n1", "127.0.1.1", true))
	start := time.Now()
	wantUnavailable(t, s.call("n1"), fmt.Sprintf("agent on node n1 (127.0.1.1:%d) did not answer within 1s", s.port))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("after %s", took)
	}
}

// TestAHostThatSwallowsEverythingIsUnavailableAfterTheTimeout connects to a
// listener that accepts, and never says a word.
func TestAHostThatSwallowsEverythingIsUnavailableAfterTheTimeout(t *testing.T) {
	s := newSite(t)
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.1.1", strconv.Itoa(s.port)))
	s.ok(err)
	defer listener.Close()
	s.endpoints("a", at("n1", "127.0.1.1", true))
	wantUnavailable(t, s.call("n1"), "not asked yet")
	gomega.NewWithT(t).Eventually(func() string { return fmt.Sprint(s.call("n1")) }).WithTimeout(gate.ReopenMax).Should(gomega.ContainSubstring("did not answer within 1s"))
}

func TestASilentAgentDelaysItsOwnCallsOnly(t *testing.T) {
	s := newSite(t)
	silent, well := s.serve("127.0.1.1", hang(t)), s.serve("127.0.1.2", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true), at("n2", "127.0.1.2", true))
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() { wantUnavailable(t, s.call("n1"), "") })
	}
	start := time.Now()
	for range 200 {
		s.ok(s.call("n2"))
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("200 calls to another agent took %s", took)
	}
	callers.Wait()
	if calls, _ := silent.counts(); calls > agents.DefaultPerNode {
		t.Errorf("%d calls were sent to an agent that does not answer, want %d at most", calls, agents.DefaultPerNode)
	}
	if calls, _ := well.counts(); calls != 200 {
		t.Errorf("%d calls", calls)
	}
}

func TestManyCallersShareOneConnectionAndAFewPlaces(t *testing.T) {
	s := newSite(t)
	server := s.serve("127.0.1.1", func(context.Context) (*csi.GetCapacityResponse, error) {
		time.Sleep(10 * time.Millisecond)
		return roomy(t.Context())
	})
	s.endpoints("a", at("n1", "127.0.1.1", true))
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for range 5 {
				if err := s.call("n1"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	if calls, connections := server.counts(); calls != 5*64 || connections != 1 || server.most > agents.DefaultPerNode {
		t.Errorf("%d calls, %d at a time, over %d connections", calls, server.most, connections)
	}
}

func TestCallsToAllAgentsTogetherAreBounded(t *testing.T) {
	s := newSite(t, func(o *agents.Options) { o.Total, o.Timeout = 4, 5*time.Second })
	var mu sync.Mutex
	inside, most := 0, 0
	slow := func(ctx context.Context) (*csi.GetCapacityResponse, error) {
		mu.Lock()
		inside++
		most = max(most, inside)
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		inside--
		mu.Unlock()
		return roomy(ctx)
	}
	for n := range 8 {
		ip := fmt.Sprintf("127.0.2.%d", n+1)
		s.serve(ip, slow)
		s.endpoints(ip, at(ip, ip, true))
		s.ok(s.call(ip))
	}
	var callers sync.WaitGroup
	for n := range 64 {
		callers.Go(func() {
			if err := s.call(fmt.Sprintf("127.0.2.%d", n%8+1)); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if most > 4 {
		t.Errorf("%d calls at a time, want 4 at most", most)
	}
}

func TestAnAgentThatMovesIsFoundAtItsNewAddress(t *testing.T) {
	s := newSite(t)
	before := s.serve("127.0.1.1", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true))
	s.ok(s.call("n1"))
	before.grpc.Stop()
	wantUnavailable(t, s.call("n1"), "127.0.1.1")
	// The pod of before is listed still, and no longer ready.
	after := s.serve("127.0.1.9", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", false))
	s.endpoints("b", at("n1", "127.0.1.9", true))
	s.ok(s.call("n1")) // at once: the silence was another pod's
	if calls, _ := after.counts(); calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func TestAnAgentThatRestartsAtItsAddressIsFoundAgain(t *testing.T) {
	s := newSite(t)
	before := s.serve("127.0.1.1", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true))
	s.ok(s.call("n1"))
	before.grpc.Stop()
	gomega.NewWithT(t).Eventually(func() string { return fmt.Sprint(s.call("n1")) }).WithTimeout(gate.ReopenMax).Should(gomega.ContainSubstring("connection refused"))
	s.serve("127.0.1.1", roomy)
	eventually(t, func() error { return s.call("n1") })
}

func TestACallUnderWayIsFinishedWhenTheAgentMoves(t *testing.T) {
	s := newSite(t)
	entered, finish := make(chan struct{}), make(chan struct{})
	s.serve("127.0.1.1", func(ctx context.Context) (*csi.GetCapacityResponse, error) {
		close(entered)
		<-finish
		return roomy(ctx)
	})
	s.endpoints("a", at("n1", "127.0.1.1", true))
	done := make(chan error, 1)
	go func() { done <- s.call("n1") }()
	<-entered
	s.serve("127.0.1.2", roomy)
	s.endpoints("a", at("n1", "127.0.1.2", true))
	s.ok(s.call("n1"))
	close(finish)
	s.ok(<-done)
}

func TestCertificatesThatDoNotFitAreNamed(t *testing.T) {
	other, err := tlstest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	agent, err := other.Source(s.authority, tlstest.Agent)
	s.ok(err)
	s.serveAs("127.0.1.1", agent, roomy)
	mistrusts, err := s.authority.Source(other, tlstest.Agent)
	s.ok(err)
	s.serveAs("127.0.1.2", mistrusts, roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true), at("n2", "127.0.1.2", true))
	wantUnavailable(t, s.call("n1"), fmt.Sprintf("agent on node n1 (127.0.1.1:%d): tls: failed to verify certificate: x509: certificate signed by unknown authority", s.port))
	wantUnavailable(t, s.call("n2"), "remote error: tls: unknown certificate authority")
}

func TestAnswersOfTheAgentPassUnchanged(t *testing.T) {
	s := newSite(t)
	var answer error
	s.serve("127.0.1.1", func(context.Context) (*csi.GetCapacityResponse, error) { return nil, answer })
	s.endpoints("a", at("n1", "127.0.1.1", true))
	for _, code := range []codes.Code{
		codes.InvalidArgument, codes.ResourceExhausted, codes.Aborted, codes.FailedPrecondition, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled,
	} {
		answer = status.Error(code, "so it is")
		err := s.call("n1")
		if _, away := provisioner.RetryAfter(err); away || status.Code(err) != code || status.Convert(err).Message() != "so it is" {
			t.Errorf("%s: error %v", code, err)
		}
	}
	answer = nil
	// None of them means that the agent can't be reached.
	if _, err := s.agents.Server(t.Context(), "n1"); err != nil {
		t.Error(err)
	}
}

// TestOneCallThatHangsDoesNotMakeAnAgentSilent: a disk may hang, and another of
// the same node not.
func TestOneCallThatHangsDoesNotMakeAnAgentSilent(t *testing.T) {
	s := newSite(t)
	var mu sync.Mutex
	hung := false
	s.serve("127.0.1.1", func(ctx context.Context) (*csi.GetCapacityResponse, error) {
		mu.Lock()
		first := !hung
		hung = true
		mu.Unlock()
		if first {
			return hang(t)(ctx)
		}
		return roomy(ctx)
	})
	s.endpoints("a", at("n1", "127.0.1.1", true))
	done := make(chan error, 1)
	go func() { done <- s.call("n1") }()
	for {
		select {
		case err := <-done:
			wantUnavailable(t, err, "no answer within 1s, though it has answered others meanwhile")
			s.ok(s.call("n1"))
			return
		default:
			mu.Lock()
			begun := hung
			mu.Unlock()
			if begun {
				s.ok(s.call("n1"))
			}
		}
	}
}

func TestACallerWhoGivesUpSaysNothingAboutTheAgent(t *testing.T) {
	s := newSite(t)
	entered := make(chan struct{}, 1)
	s.serve("127.0.1.1", func(ctx context.Context) (*csi.GetCapacityResponse, error) {
		entered <- struct{}{}
		return hang(t)(ctx)
	})
	s.endpoints("a", at("n1", "127.0.1.1", true))
	ctx, cancel := context.WithCancel(t.Context())
	agent, err := s.agents.Server(ctx, "n1")
	s.ok(err)
	go func() { <-entered; cancel() }()
	if _, err := agent.GetCapacity(ctx, &csi.GetCapacityRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := s.agents.Server(t.Context(), "n1"); err != nil {
		t.Error(err)
	}
}

func TestConnectionsThatNobodyUsesAreClosed(t *testing.T) {
	s := newSite(t, func(o *agents.Options) { o.Idle = 50 * time.Millisecond })
	server := s.serve("127.0.1.1", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true))
	s.ok(s.call("n1"))
	g := gomega.NewWithT(t)
	g.Eventually(func() float64 { return s.gauge("berth_agent_connections", "") }).Should(gomega.BeZero())
	s.ok(s.call("n1"))
	if calls, connections := server.counts(); calls != 2 || connections != 2 {
		t.Errorf("%d calls over %d connections", calls, connections)
	}
}

// TestFewConnectionsAreKeptForLater: a look at all nodes must not leave one to each
// of them.
func TestFewConnectionsAreKeptForLater(t *testing.T) {
	const nodes, most = 20, 4
	s := newSite(t, func(o *agents.Options) { o.MaxIdle = most })
	var servers []*server
	for n := range nodes {
		ip := fmt.Sprintf("127.0.3.%d", n+1)
		servers = append(servers, s.serve(ip, roomy))
		s.endpoints(ip, at(ip, ip, true))
		s.ok(s.call(ip))
	}
	if open := s.gauge("berth_agent_connections", ""); open != most {
		t.Errorf("%g connections are open, want %d", open, most)
	}
	// The last ones are still there, however often they are used.
	for range 10 {
		s.ok(s.call("127.0.3.20"))
		s.ok(s.call("127.0.3.19"))
	}
	s.ok(s.call("127.0.3.17"))
	for _, kept := range []int{16, 18, 19} {
		if _, connections := servers[kept].counts(); connections != 1 {
			t.Errorf("agent %d was connected to %d times", kept+1, connections)
		}
	}
	s.ok(s.call("127.0.3.1"))
	if _, connections := servers[0].counts(); connections != 2 {
		t.Errorf("the first agent was connected to %d times, want 2", connections)
	}
	if open := s.gauge("berth_agent_connections", ""); open != most {
		t.Errorf("%g connections are open, want %d", open, most)
	}
}

func TestAgentsAreCountedByState(t *testing.T) {
	s := newSite(t)
	s.serve("127.0.1.1", roomy)
	s.endpoints("a", at("n1", "127.0.1.1", true), at("n2", "127.0.1.2", true), at("n3", "127.0.1.3", false))
	s.ok(s.call("n1"))
	wantUnavailable(t, s.call("n2"), "refused")
	for state, want := range map[string]float64{"ready": 1, "silent": 1, "not_ready": 1} {
		if got := s.gauge("berth_agents", state); got != want {
			t.Errorf("%g agents are %s, want %g", got, state, want)
		}
	}
	if got := s.gauge("berth_agent_connections", ""); got != 1 {
		t.Errorf("%g connections, want 1", got)
	}
	// Agents of nodes that are gone are forgotten.
	s.endpoints("a")
	if _, err := s.agents.Names(t.Context()); err != nil {
		t.Error(err)
	}
	if got := s.gauge("berth_agent_connections", ""); got != 0 {
		t.Errorf("%g connections, want none", got)
	}
}

// gauge returns the value of a series, with that label if it has one.
func (s *site) gauge(name, label string) float64 {
	s.t.Helper()
	families, err := s.registry.Gather()
	s.ok(err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			if labels := metric.GetLabel(); label == "" || slices.ContainsFunc(labels, func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
				return metric.GetGauge().GetValue()
			}
		}
	}
	s.t.Fatalf("no series %s %s", name, label)
	return 0
}
