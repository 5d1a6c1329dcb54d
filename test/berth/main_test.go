// Package berth_test runs the real berth binary, with its hostpath driver,
// against a real control plane: it is killed, overrun and lied to.
package berth_test

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

// berthUser is whom berth acts as.
const berthUser = "berth-under-test"

// auditPolicy keeps berth's writes, other than those of leader election.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources: [{group: coordination.k8s.io}]
- level: Metadata
  users: [` + berthUser + `]
  verbs: [create, update, patch, delete]
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
	gomega.SetDefaultEventuallyPollingInterval(50 * time.Millisecond)
	gomega.SetDefaultConsistentlyPollingInterval(50 * time.Millisecond)
	dir, err := os.MkdirTemp("", "berth-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "berth")
	build := exec.Command("go", "build", "-tags", "crashpoints", "-o", binary, "github.com/berth-storage/berth")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build berth: %v\n%s", err, output)
		return 1
	}
	plane, err = controlplane.Start(context.Background(), controlplane.Options{
		ControllerManager: true,
		Scheduler:         true,
		AuditPolicy:       auditPolicy,
		// It takes finalizers off thousands of objects here, at 20 a second by
		// default.
		ControllerManagerArgs: []string{"--kube-api-qps=1000", "--kube-api-burst=2000"},
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
