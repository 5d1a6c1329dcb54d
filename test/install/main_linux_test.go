package install

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/test/cluster"
)

// helmEnv names helm.
const helmEnv = "BERTH_HELM"

const (
	namespace  = "berth-system"
	controller = "system:serviceaccount:" + namespace + ":berth-controller"
)

var imageNames = []string{"berth", "pause", "busybox"}

// What the controller asks for, and nothing else.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["` + controller + `"]
- level: None
`

var (
	shared     *cluster.Cluster
	skipReason string
)

func TestMain(m *testing.M) {
	gomega.SetDefaultEventuallyTimeout(time.Minute)
	gomega.SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	var err error
	skipReason, err = cluster.SkipReason()
	if err == nil && skipReason == "" && os.Getenv(helmEnv) == "" {
		err = fmt.Errorf(`%s names no helm: "make chart-e2e" builds it`, helmEnv)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests must run here, and cannot:", err)
		os.Exit(1)
	}
	if skipReason != "" {
		os.Exit(m.Run())
	}
	os.Exit(cluster.Main(func() int {
		shared, err = cluster.Start(context.Background(), cluster.Options{Images: imageNames, AuditPolicy: auditPolicy, Output: os.Stderr})
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the cluster:", err)
			return 1
		}
		return m.Run()
	}, imageNames...))
}
