// Package e2e_test deploys Berth from config/ into a cluster with two real
// kubelets, and uses it as people do: with pods. "make e2e" runs it.
package e2e_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/test/cluster"
)

var imageNames = []string{"berth", "pause", "busybox"}

var (
	shared     *cluster.Cluster
	skipReason string
)

func TestMain(m *testing.M) {
	gomega.SetDefaultEventuallyTimeout(time.Minute)
	gomega.SetDefaultEventuallyPollingInterval(100 * time.Millisecond)
	var err error
	skipReason, err = cluster.SkipReason()
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests must run here, and cannot:", err)
		os.Exit(1)
	}
	if skipReason != "" {
		os.Exit(m.Run())
	}
	os.Exit(cluster.Main(func() int {
		code, err := runTests(m)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}, imageNames...))
}

func runTests(m *testing.M) (int, error) {
	ctx := context.Background()
	var err error
	shared, err = cluster.Start(ctx, cluster.Options{Images: imageNames, Output: os.Stderr})
	if err != nil {
		return 0, fmt.Errorf("start the cluster: %w", err)
	}
	for _, node := range shared.Nodes() {
		if err := mountPools(ctx, node); err != nil {
			return 0, err
		}
	}
	if err := shared.DeployBerth(ctx, "config"); err != nil {
		return 0, err
	}
	code := m.Run()
	if code == 0 {
		err = checkNothingIsLeft(ctx)
	}
	return code, err
}

// mountPools mounts the disks of a node, which it does not do by itself when it
// starts again.
func mountPools(ctx context.Context, node *cluster.Node) error {
	if err := mountSized(ctx, node); err != nil {
		return err
	}
	return mountQuota(ctx, node)
}

// sizes are those of the pool "sized", by node.
var sizes = map[string]string{"node1": "16m", "node2": "512m"}

// mountSized mounts the pool "sized" of a node.
func mountSized(ctx context.Context, node *cluster.Node) error {
	if err := os.MkdirAll(node.Path("/mnt/sized"), 0o750); err != nil {
		return err
	}
	mount := node.Command(ctx, "mount", "-t", "tmpfs", "-o", "size="+sizes[node.Name()], "tmpfs", "/mnt/sized")
	if output, err := mount.CombinedOutput(); err != nil {
		return fmt.Errorf("mount a pool on %s: %w: %s", node.Name(), err, output)
	}
	return nil
}
