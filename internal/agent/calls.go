package agent

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// callMetrics have the name and labels that other CSI plugins use.
type callMetrics struct {
	seconds *prometheus.HistogramVec
	inside  prometheus.Gauge
	refused prometheus.Counter
}

func newCallMetrics(registerer prometheus.Registerer) *callMetrics {
	m := &callMetrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:        "csi_plugin_operations_seconds",
			Help:        "Seconds that calls took. Broken down by method and by gRPC status code.",
			ConstLabels: prometheus.Labels{"driver_name": wire.PluginName},
			Buckets:     []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method_name", "grpc_status_code"}),
		inside: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_node_calls_in_flight",
			Help: "Calls of the controller that the agent works on.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_agent_refused_connections_total",
			Help: "Connections that were not the controller's.",
		}),
	}
	registerer.MustRegister(m.seconds, m.inside, m.refused)
	return m
}

// observeCalls counts, times and logs calls: one line for each, at a level that
// says whether it changed anything or failed.
func observeCalls(log logr.Logger, metrics *callMetrics) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		began := time.Now()
		metrics.inside.Inc()
		defer metrics.inside.Dec()
		resp, err := handler(ctx, req)
		took, code := time.Since(began), status.Code(err)
		metrics.seconds.WithLabelValues(info.FullMethod, code.String()).Observe(took.Seconds())
		logCall(log, path.Base(info.FullMethod), req, took, code, err)
		return resp, err
	}
}

func logCall(log logr.Logger, method string, req any, took time.Duration, code codes.Code, err error) {
	subject, changes := describe(req)
	log = log.WithValues(append(subject, "duration", took.String(), "code", code.String())...)
	switch code {
	case codes.OK:
		if !changes {
			log = log.V(1)
		}
		log.Info(method)
	case codes.Internal, codes.Unknown, codes.DataLoss, codes.Unavailable:
		log.Error(err, method)
	default:
		log.Info(method, "reason", status.Convert(err).Message())
	}
}

// describe returns what a request is about, as keys and values for a log, and
// whether it changes anything.
func describe(req any) (subject []any, changes bool) {
	switch r := req.(type) {
	case *csi.CreateVolumeRequest:
		parameters := r.GetParameters()
		return []any{
			"volume", r.GetName(), "pool", parameters[wire.ParamPool], "class", parameters[wire.ParamClass],
			"claim", parameters[wire.ParamClaimNamespace] + "/" + parameters[wire.ParamClaimName],
		}, true
	case *csi.GetCapacityRequest:
		return []any{"pool", r.GetParameters()[wire.ParamPool]}, false
	case *csi.DeleteVolumeRequest:
		return volumeOf(r.GetVolumeId()), true
	case *csi.ControllerExpandVolumeRequest:
		return volumeOf(r.GetVolumeId()), true
	case interface{ GetVolumeId() string }:
		return volumeOf(r.GetVolumeId()), false
	}
	return nil, false
}

func volumeOf(id string) []any {
	parsed, err := wire.ParseVolumeID(id)
	if err != nil {
		return []any{"volume", strings.ToValidUTF8(id[:min(len(id), 64)], "")}
	}
	return []any{"volume", parsed.Volume, "pool", parsed.Pool}
}

// recoverCalls keeps one request that the server is not up to from taking the
// others with it.
func recoverCalls(log logr.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if problem := recover(); problem != nil {
				log.Error(fmt.Errorf("panic: %v", problem), "A call failed in a way that it must not", "method", info.FullMethod, "stack", string(debug.Stack()))
				err = status.Error(codes.Internal, "the agent failed in a way that it must not; its log says how")
			}
		}()
		return handler(ctx, req)
	}
}

// refuseOtherNodes refuses calls that are meant for another node, and such that
// don't say for which: a directory made on the wrong node would be lost.
func refuseOtherNodes(node string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if meant := metadata.ValueFromIncomingContext(ctx, wire.MetaNode); len(meant) != 1 || meant[0] != node {
			return nil, status.Errorf(codes.Unavailable, "this is the agent of node %s, not of %q", node, meant)
		}
		return handler(ctx, req)
	}
}
