package cluster_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/test/cluster"
)

// victimEnv, when set, makes the test binary start a cluster and wait to be
// killed.
const victimEnv = "BERTH_TEST_CLUSTER_VICTIM"

var imageNames = []string{"pause", "busybox"}

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
	os.Exit(cluster.Main(func() int { return runTests(m) }, imageNames...))
}

func runTests(m *testing.M) int {
	var err error
	shared, err = cluster.Start(context.Background(), cluster.Options{Images: imageNames, Output: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	if os.Getenv(victimEnv) != "" {
		fmt.Println("started")
		select {}
	}
	code := m.Run()
	if err := shared.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the cluster:", err)
		return 1
	}
	return code
}

func needCluster(t *testing.T) {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
}
