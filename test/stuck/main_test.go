// Package stuck_test makes claims wait in all the ways that
// docs/stuck-claims.md explains, on a real API server with
// kube-controller-manager and kube-scheduler, and compares what kubectl shows of
// them with what the page says it does. It also looks at what else an
// administrator sees of a running Berth: probes, metrics, logs.
package stuck_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-storage/berth/test/controlplane"
)

// berthUser is whom berth acts as. It has the rights of config/rbac.
const berthUser = "berth-under-test"

// auditPolicy keeps what berth reads and writes, other than its leases.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources: [{group: coordination.k8s.io}]
- level: Metadata
  users: [` + berthUser + `]
`

var (
	plane  *controlplane.ControlPlane
	binary string
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	log.SetLogger(logr.Discard())
	gomega.SetDefaultEventuallyTimeout(time.Minute)
	gomega.SetDefaultEventuallyPollingInterval(100 * time.Millisecond)
	dir, err := os.MkdirTemp("", "berth-stuck-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "berth")
	build := exec.Command("go", "build", "-o", binary, "github.com/berth-storage/berth")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build berth: %v\n%s", err, output)
		return 1
	}
	plane, err = controlplane.Start(context.Background(), controlplane.Options{
		ControllerManager: true,
		Scheduler:         true,
		AuditPolicy:       auditPolicy,
		// The nodes here have no kubelet that would say that they live.
		ControllerManagerArgs: []string{"--controllers=*,-node-lifecycle-controller"},
		Output:                os.Stderr,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the control plane:", err)
		return 1
	}
	code := m.Run()
	if err := plane.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the control plane:", err)
		return 1
	}
	return code
}
