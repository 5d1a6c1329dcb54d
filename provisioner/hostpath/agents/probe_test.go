package agents_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/agents"
)

// TestSilentNodesLeaveWorkersToOthers: many claims wait for many nodes that swallow
// everything, and the claim of a node that is well comes last.
func TestSilentNodesLeaveWorkersToOthers(t *testing.T) {
	const workers, silent, claims = 32, 50, 8
	for name, known := range map[string]bool{"a node that has answered before": true, "a new node": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(o *agents.Options) {
				o.Timeout = 15 * time.Second
				o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
					if host, _, _ := net.SplitHostPort(address); host != "127.0.1.1" {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return new(net.Dialer).DialContext(ctx, "tcp", address)
				}
			})
			s.serve("127.0.1.1", roomy)
			endpoints := []discoveryv1.Endpoint{at("well", "127.0.1.1", true)}
			queue := workqueue.NewTypedDelayingQueue[string]()
			for n := range silent {
				node := fmt.Sprintf("silent-%d", n)
				endpoints = append(endpoints, at(node, fmt.Sprintf("127.0.5.%d", n+1), true))
				for claim := range claims {
					queue.Add(fmt.Sprintf("%s/%d", node, claim))
				}
			}
			queue.Add("well/0")
			s.endpoints("a", endpoints...)
			if known {
				s.ok(s.call("well"))
			}

			served := make(chan struct{})
			var running sync.WaitGroup
			work := func() {
				for {
					claim, over := queue.Get()
					if over {
						return
					}
					node, _, _ := strings.Cut(claim, "/")
					err := s.call(node)
					if after, again := provisioner.RetryAfter(err); again {
						queue.AddAfter(claim, after)
					} else if err != nil || node != "well" {
						t.Errorf("%s: %v", claim, err)
					} else {
						close(served)
					}
					queue.Done(claim)
				}
			}
			for range workers {
				running.Go(work)
			}
			select {
			case <-served:
			case <-time.After(4 * time.Second): // the silent ones are found out after 5
				t.Error("no worker was left to the node that is well")
			}
			queue.ShutDown()
			running.Wait()
		})
	}
}

// TestAnAgentIsAskedOnceUntilItAnswers: and nobody waits for that.
func TestAnAgentIsAskedOnceUntilItAnswers(t *testing.T) {
	s := newSite(t, func(o *agents.Options) { o.Timeout = 15 * time.Second })
	server := s.serve("127.0.1.1", roomy)
	listening := make(chan struct{})
	server.mu.Lock()
	server.listening = listening
	server.mu.Unlock()
	s.endpoints("a", at("n1", "127.0.1.1", true))

	var callers sync.WaitGroup
	start := time.Now()
	for range 64 {
		callers.Go(func() {
			err := s.call("n1")
			if wantUnavailable(t, err, "agent on node n1"); !errors.Is(err, hostpath.ErrNotAsked) || !provisioner.IsPremature(err) {
				t.Errorf("error %v, premature: %v", err, provisioner.IsPremature(err))
			}
		})
	}
	callers.Wait()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	server.mu.Lock()
	if server.probes != 1 || server.calls != 0 {
		t.Errorf("%d probes, %d calls", server.probes, server.calls)
	}
	server.mu.Unlock()

	// A look at all nodes waits.
	agent, err := s.agents.Server(t.Context(), "n1")
	s.ok(err)
	listed := make(chan error, 1)
	go func() {
		_, err := agent.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
		listed <- err
	}()
	close(listening)
	if err := <-listed; status.Code(err) != codes.Unimplemented {
		t.Errorf("ListVolumes: %v, want the agent's answer", err)
	}
	s.ok(s.call("n1"))
}
