package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// runLimit bounds what a run does beside waiting for its claims.
	runLimit = 20 * time.Minute
	// eventsLag is how long an event may take to be written after what it is
	// about.
	eventsLag = 2 * time.Second
)

// loadStage runs loads, each run on a control plane of its own.
type loadStage struct {
	config     loadsConfig
	binaries   map[string]string // by mode
	dir        string
	notes      io.Writer
	kubernetes string
}

// loadRun is what one run gives.
type loadRun struct {
	Load  string `json:"load"`
	Mode  string `json:"mode"`
	Round int    `json:"round"`
	observed
	// Without is the same without the burden, for loads that compare with it.
	Without *observed `json:"without,omitempty"`
	Repairs int       `json:"repairs"`
	// Backlog is the most volumes that waited in kube-controller-manager's queue
	// while there were claims to bind.
	Backlog int `json:"backlog"`
	// Missing says why the load was not what it should be.
	Missing string `json:"missing,omitempty"`
	// Seconds is how long the run took, with everything.
	Seconds float64 `json:"seconds"`
}

// scene is a run under way.
type scene struct {
	*bench
	load    load
	plan    plan
	pool    string
	metrics string // URL of the berth's
	ready   string // URL that answers when the berth works
	lasts   int    // volumes made by awaitIngested
	// patience is how long claims may take to become Bound.
	patience time.Duration
}

// run does one run, from the start of a control plane to its end.
func (l *loadStage) run(ctx context.Context, ld load, st step) (run loadRun, err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit+l.config.timeout, errors.New("timed out"))
	defer cancel()
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%s-%d", ld.name, st.name, st.round))
	if l.config.dir == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	s, err := l.newScene(ctx, ld, st, dir)
	if err != nil {
		return loadRun{}, err
	}
	defer func() { err = errors.Join(err, s.cluster.stop()) }()
	l.kubernetes = s.cluster.version
	if err := s.prepareNamespaces(ctx); err != nil {
		return loadRun{}, err
	}
	if ld.stage != nil {
		if err := ld.stage(ctx, s); err != nil {
			return loadRun{}, fmt.Errorf("prepare the cluster: %w", err)
		}
	}
	run = loadRun{Load: ld.name, Mode: st.name, Round: st.round}
	defer func() { run.Seconds = time.Since(began).Seconds() }()
	err = s.withProcess(ctx, s.plan.contender, s.plan.id, s.plan.id, s.pool, func(ctx context.Context, _ *process) error {
		return s.measureLoad(ctx, &run)
	})
	return run, err
}

// newScene starts a control plane, and says how to start the berth.
func (l *loadStage) newScene(ctx context.Context, ld load, st step, dir string) (*scene, error) {
	pool := filepath.Join(dir, "pool")
	if err := os.MkdirAll(pool, 0o750); err != nil {
		return nil, err
	}
	cluster, err := startCluster(ctx, config{}, filepath.Join(dir, "cluster"), io.Discard)
	if err != nil {
		return nil, err
	}
	metrics, err := freeAddress(ctx)
	probes, failed := freeAddress(ctx)
	if err := errors.Join(err, failed); err != nil {
		return nil, errors.Join(err, cluster.stop())
	}
	flags := []string{"--metrics-bind-address=" + metrics, "--health-probe-bind-address=" + probes}
	filler := berthContender(l.binaries[st.name], flags...)
	if st.name == modeCluster {
		flags = append(flags, "--binding=cluster")
	}
	return &scene{
		bench: &bench{
			config:  config{waitForConsumer: ld.waits},
			cluster: cluster,
			fleet:   map[string]contender{runBerth: filler},
			dir:     dir,
			notes:   io.Discard,
		},
		load: ld,
		plan: plan{
			step:      st,
			contender: berthContender(l.binaries[st.name], flags...),
			id:        "load",
			claims:    ld.claims,
			pace:      ld.pace,
		},
		pool:     pool,
		metrics:  "http://" + metrics + "/metrics",
		ready:    "http://" + probes + "/readyz",
		patience: l.config.timeout,
	}, nil
}

// withoutNamespace holds the claims that are made without the burden, and
// warmUpNamespace that by which a berth shows that it works.
func (s *scene) withoutNamespace() string { return s.plan.id + "-without" }
func (s *scene) warmUpNamespace() string  { return s.plan.id + "-warm-up" }

// otherNamespace holds claims that have nothing to do with the berth.
func (s *scene) otherNamespace() string { return s.plan.id + "-other" }

func (s *scene) prepareNamespaces(ctx context.Context) error {
	if err := s.prepare(ctx, s.plan); err != nil {
		return err
	}
	for _, name := range []string{s.withoutNamespace(), s.warmUpNamespace(), s.otherNamespace()} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := s.cluster.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// measureLoad makes the claims while the berth runs, and counts what comes of them.
func (s *scene) measureLoad(ctx context.Context, run *loadRun) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	if s.load.likeWithout {
		without, err := s.observe(ctx, s.withoutNamespace(), nil)
		if err != nil {
			return err
		}
		run.Without = &without
		if err := s.cluster.awaitQuiet(ctx); err != nil {
			return err
		}
	}
	var missing []string
	note := func(text string, err error) error {
		if text != "" {
			missing = append(missing, text)
		}
		return err
	}
	if s.load.begin != nil {
		if err := note(s.load.begin(ctx, s)); err != nil {
			return err
		}
	}
	backlog := s.watchBacklog(ctx)
	var err error
	run.observed, err = s.observe(ctx, s.plan.id, func(ctx context.Context) error {
		if s.load.during == nil {
			return nil
		}
		return note(s.load.during(ctx, s))
	})
	run.Backlog = backlog()
	if err != nil {
		return err
	}
	if s.load.arose != nil {
		if err := note(s.load.arose(ctx, s)); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		run.Missing = missing[0]
	}
	run.Repairs, err = readCounter(ctx, s.metrics, "berth_claims_lost_repaired_total")
	return err
}

// start returns when the berth works and kube-controller-manager is quiet, if it
// ever is. Where it is not, the first claim that the berth sees is one of those that
// count: it could learn from others.
func (s *scene) start(ctx context.Context) error {
	if s.load.restless {
		return awaitOK(ctx, s.ready)
	}
	if _, err := s.bindAll(ctx, s.warmUpNamespace(), s.plan.id, 1, pace{}); err != nil {
		return fmt.Errorf("warm up with one claim: %w", err)
	}
	return s.cluster.awaitQuiet(ctx)
}

// watchBacklog looks at kube-controller-manager's queue of volumes until the
// function that it returns is called, which tells the greatest depth seen.
func (s *scene) watchBacklog(ctx context.Context) func() int {
	ctx, cancel := context.WithCancel(ctx)
	deepest := 0
	var watching sync.WaitGroup
	watching.Go(func() {
		for sleep(ctx, backlogPoll) == nil {
			// It does not answer while it is stopped.
			if depth, err := s.volumeQueue(ctx); err == nil {
				deepest = max(deepest, depth)
			}
		}
	})
	return func() int {
		cancel()
		watching.Wait()
		return deepest
	}
}

// observe makes the claims in a namespace, waits until all are Bound or the time is
// over, and then until kube-controller-manager has seen everything, so that it has
// no reason left to call any of them Lost. Meanwhile it calls during.
func (s *scene) observe(ctx context.Context, namespace string, during func(context.Context) error) (observed, error) {
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	bound, err := watchBound(watching, s.cluster.client, namespace, stop)
	if err != nil {
		return observed{}, err
	}
	events, err := watchEvents(watching, s.cluster.client, namespace, stop)
	if err != nil {
		return observed{}, err
	}
	beside := make(chan error, 1)
	go func() {
		if during == nil {
			beside <- nil
			return
		}
		beside <- during(watching)
	}()
	made, err := s.makeClaims(watching, namespace, s.plan.id, s.plan.claims, s.plan.pace, bound, &bindTimes{})
	if err != nil {
		return observed{}, fmt.Errorf("make the claims: %w", err)
	}
	if err := <-beside; err != nil {
		return observed{}, err
	}
	waiting, cancel := context.WithTimeoutCause(watching, s.patience, errNotBound)
	defer cancel()
	if err := bound.await(waiting, s.plan.claims); err != nil && !errors.Is(err, errNotBound) {
		return observed{}, err
	}
	if err := s.awaitIngested(watching); err != nil {
		return observed{}, err
	}
	if err := sleep(watching, eventsLag); err != nil {
		return observed{}, err
	}
	return observe(bound, events.snapshot(), made), nil
}

// errNotBound says that claims took too long. What they show then is a result.
var errNotBound = errors.New("claims are not Bound")

// observed is what users see of the claims of one run.
type observed struct {
	Claims int `json:"claims"`
	// Bound counts the claims that are Bound in the end.
	Bound int `json:"bound"`
	// Lost counts how often a claim became Lost, LostClaims the claims that did,
	// and LostEvents the warnings about it, of which there may be fewer.
	Lost       int `json:"claim_lost"`
	LostClaims int `json:"claims_lost"`
	LostEvents int `json:"claim_lost_events"`
	Conflicts  int `json:"conflict_warnings"`

	LatenciesMS []float64       `json:"latencies_ms"`
	latencies   []time.Duration // sorted, of the claims that were Bound
}

// observe puts together what the watches saw of the claims made.
func observe(bound *boundWatch, events *eventCounts, made map[string]time.Time) observed {
	o := observed{Claims: len(made), LostEvents: events.lost, Conflicts: events.conflicts}
	for name, at := range made {
		seen := bound.of(name)
		if seen.phase == corev1.ClaimBound {
			o.Bound++
		}
		if seen.lost > 0 {
			o.LostClaims++
			o.Lost += seen.lost
		}
		if !seen.bound.IsZero() {
			// The watch may be faster than the answer to the request.
			o.latencies = append(o.latencies, max(0, seen.bound.Sub(at)))
		}
	}
	slices.Sort(o.latencies)
	for _, latency := range o.latencies {
		o.LatenciesMS = append(o.LatenciesMS, milliseconds(latency))
	}
	return o
}

// line is how a run is reported as soon as it is over.
func (r loadRun) line() string {
	text := fmt.Sprintf("%s, %s, round %d, in %.0f s: %d of %d Bound, p50 %.2f s, max %.2f s, %d times Lost (%d claims, %d events), %d conflicts, %d repairs, backlog %d",
		r.Load, r.Mode, r.Round, r.Seconds, r.Bound, r.Claims, percentile(r.latencies, 50).Seconds(), percentile(r.latencies, 100).Seconds(),
		r.Lost, r.LostClaims, r.LostEvents, r.Conflicts, r.Repairs, r.Backlog)
	if w := r.Without; w != nil {
		text += fmt.Sprintf("; without: p50 %.2f s, max %.2f s", percentile(w.latencies, 50).Seconds(), percentile(w.latencies, 100).Seconds())
	}
	if r.Missing != "" {
		text += "; NOT AS IT SHOULD BE: " + r.Missing
	}
	return text
}
