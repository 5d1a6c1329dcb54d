package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bench runs contenders, one after the other.
type bench struct {
	config  config
	cluster *cluster
	fleet   map[string]contender
	dir     string
	notes   io.Writer
}

func (b *bench) note(format string, args ...any) {
	fmt.Fprintf(b.notes, format+"\n", args...)
}

// plan is one run.
type plan struct {
	step
	contender contender
	// id names the namespace, the class and the user.
	id        string
	claims    int
	pace      pace
	deletions int
}

func (b *bench) plan(s step) plan {
	n := b.config.claims
	if s.name == runLibrary {
		n = min(n, b.config.libraryClaims)
	}
	return plan{
		step:      s,
		contender: b.fleet[s.name],
		id:        fmt.Sprintf("bench-%s-%d", s.name, s.round),
		claims:    n,
		pace:      pace{rate: b.config.rate},
		deletions: b.config.deletions,
	}
}

func (b *bench) singlePlan() plan {
	return plan{
		step:      step{name: runBerth, round: 1},
		contender: b.fleet[runBerth],
		id:        "bench-single-1",
		claims:    b.config.single,
		pace:      pace{oneByOne: true},
	}
}

// run does one run from its namespace to the last deleted directory.
func (b *bench) run(ctx context.Context, p plan) (runResult, error) {
	b.note("%s: %d claims", p.id, p.claims)
	pool := filepath.Join(b.dir, p.id, "pool")
	if err := os.MkdirAll(pool, 0o750); err != nil {
		return runResult{}, err
	}
	if err := b.prepare(ctx, p); err != nil {
		return runResult{}, err
	}
	if p.deletions > 0 {
		if err := b.fill(ctx, p, pool); err != nil {
			return runResult{}, fmt.Errorf("%s: make the claims to delete: %w", p.id, err)
		}
	}
	var m measurement
	err := b.withProcess(ctx, p.contender, p.id, p.id, pool, func(ctx context.Context, process *process) error {
		return b.measure(ctx, p, pool, process, &m)
	})
	if err == nil && p.deletions > 0 && !p.contender.reclaims {
		err = b.withProcess(ctx, b.fleet[runBerth], p.id+"-filler", p.id, pool, func(ctx context.Context, _ *process) error {
			return b.awaitGone(ctx, p.filledClass(), pool, p.deletions)
		})
	}
	if err != nil {
		return runResult{}, fmt.Errorf("%s: %w", p.id, err)
	}
	return b.evaluate(p, m)
}

// withProcess starts a contender as the user, calls do while it runs, and stops it.
func (b *bench) withProcess(ctx context.Context, c contender, user, class, pool string, do func(context.Context, *process) error) error {
	kubeconfig, err := b.cluster.kubeconfig(user)
	if err != nil {
		return err
	}
	process, err := startProcess(c.command(kubeconfig, pool, class), filepath.Join(b.dir, user+".log"))
	if err != nil {
		return err
	}
	running, cancel := process.whileRunning(ctx)
	err = do(running, process)
	if cause := context.Cause(running); err != nil && cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	cancel()
	if err != nil {
		err = fmt.Errorf("%w%s", err, process.tail())
	}
	return errors.Join(err, process.stop())
}

// prepare makes the namespaces and the class.
func (b *bench) prepare(ctx context.Context, p plan) error {
	for _, name := range []string{p.id, p.filledNamespace()} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := b.cluster.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	mode, remove := storagev1.VolumeBindingImmediate, corev1.PersistentVolumeReclaimDelete
	if b.config.waitForConsumer {
		mode = storagev1.VolumeBindingWaitForFirstConsumer
	}
	_, err := b.cluster.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: p.id},
		Provisioner:       p.contender.provisioner,
		ReclaimPolicy:     &remove,
		VolumeBindingMode: &mode,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if p.filledClass() == p.id {
		return nil
	}
	_, err = b.cluster.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: p.filledClass()},
		Provisioner:       b.fleet[runBerth].provisioner,
		ReclaimPolicy:     &remove,
		VolumeBindingMode: &mode,
	}, metav1.CreateOptions{})
	return err
}

// filledNamespace holds the claims that are deleted during the run.
func (p plan) filledNamespace() string { return p.id + "-deleted" }

// filledClass is the class of those claims. They are made through Berth.
func (p plan) filledClass() string {
	if p.contender.reclaims {
		return p.id
	}
	return p.filledNamespace()
}

// fill makes claims to delete.
func (b *bench) fill(ctx context.Context, p plan, pool string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.patience(p.deletions), errors.New("timed out"))
	defer cancel()
	return b.withProcess(ctx, b.fleet[runBerth], p.id+"-filler", p.filledClass(), pool, func(ctx context.Context, _ *process) error {
		if _, err := b.bindAll(ctx, p.filledNamespace(), p.filledClass(), p.deletions, pace{}); err != nil {
			return err
		}
		return b.cluster.awaitQuiet(ctx)
	})
}

// measurement is what a run gives.
type measurement struct {
	claims   bindTimes
	binding  window // from the first create to quiet
	deletion window
	events   *eventCounts
	cpu      map[string]float64
	peakRSS  int64
}

// measure has the process bind the claims of p, then deletes them.
func (b *bench) measure(ctx context.Context, p plan, pool string, process *process, m *measurement) error {
	if err := b.warmUp(ctx, p); err != nil {
		return fmt.Errorf("warm up with one claim: %w", err)
	}
	watching, stopWatching := context.WithCancelCause(ctx)
	defer stopWatching(nil)
	events, err := watchEvents(watching, b.cluster.client, p.id, stopWatching)
	if err != nil {
		return err
	}
	if err := b.bindMeasured(watching, p, process, m); err != nil {
		return err
	}
	m.events = events.snapshot()
	stopWatching(nil)
	b.note("%s: all Bound after %.1fs, quiet after %.1fs", p.id, m.claims.elapsed().Seconds(), m.binding.end.Sub(m.binding.start).Seconds())

	if err := b.deleteMeasured(ctx, p, pool, m); err != nil {
		return fmt.Errorf("delete the claims: %w", err)
	}
	b.note("%s: all deleted after %.1fs", p.id, m.deletion.end.Sub(m.deletion.start).Seconds())
	m.peakRSS, err = peakRSS(process.pid())
	return errors.Join(err, b.cluster.awaitQuiet(ctx))
}

// warmUp waits until the contender has bound a claim, so that what follows
// measures no start, and the cluster is quiet again.
func (b *bench) warmUp(ctx context.Context, p plan) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.patience(1), errors.New("timed out"))
	defer cancel()
	if _, err := b.bindAll(ctx, p.id, p.id, 1, pace{prefix: "warm-up-"}); err != nil {
		return err
	}
	return b.cluster.awaitQuiet(ctx)
}

func (b *bench) bindMeasured(ctx context.Context, p plan, process *process, m *measurement) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.pace.due(p.claims)+b.config.patience(p.claims), errors.New("timed out"))
	defer cancel()
	processes := map[string]int{"provisioner": process.pid()}
	for name, pid := range b.cluster.processes {
		processes[name] = pid
	}
	before, err := cpuTimes(processes)
	if err != nil {
		return err
	}
	deleting := make(chan error, 1)
	go func() { deleting <- b.deleteClaims(ctx, p.filledNamespace()) }()
	m.binding.start = time.Now()
	m.claims, err = b.bindAll(ctx, p.id, p.id, p.claims, p.pace)
	if err != nil {
		return err
	}
	if m.cpu, err = cpuTimes(processes); err != nil {
		return err
	}
	for name := range m.cpu {
		m.cpu[name] -= before[name]
	}
	if err := <-deleting; err != nil {
		return err
	}
	err = b.cluster.awaitQuiet(ctx)
	m.binding.end = time.Now()
	return err
}

// deleteMeasured deletes the claims and waits until nothing is left of them.
func (b *bench) deleteMeasured(ctx context.Context, p plan, pool string, m *measurement) error {
	m.deletion.start = time.Now()
	if err := b.deleteClaims(ctx, p.id); err != nil {
		return err
	}
	if !p.contender.reclaims {
		pool = "" // has no directory of these claims
		volumes := b.cluster.client.CoreV1().PersistentVolumes()
		err := volumes.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: labelClass + "=" + p.id})
		if err != nil {
			return err
		}
	}
	err := b.awaitGone(ctx, p.id, pool, p.claims+p.deletions)
	m.deletion.end = time.Now()
	return err
}

func (b *bench) deleteClaims(ctx context.Context, namespace string) error {
	return b.cluster.client.CoreV1().PersistentVolumeClaims(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}
