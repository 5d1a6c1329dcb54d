package controllers_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/onsi/gomega"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	// berthUser is whom the managers of these tests act as.
	berthUser = "berth-under-test"
	// minimalUser has no rights but those of config/rbac.
	minimalUser = "berth-with-minimal-rights"
	// featureGatesEnv names the environment variable with the feature gates of the
	// control plane, as its flag --feature-gates has them. KUBEBUILDER_ASSETS decides
	// which version it is.
	featureGatesEnv = "BERTH_FEATURE_GATES"
	// emulatedVersionEnv names that with the version which the control plane behaves
	// as, as its flag --emulated-version has it: one whose gates are not locked yet.
	emulatedVersionEnv = "BERTH_EMULATED_VERSION"
)

// auditPolicy keeps every write to claims and volumes with what came of it, and
// every request of minimalUser.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: [` + minimalUser + `]
- level: RequestResponse
  verbs: [create, update, patch, delete]
  resources:
  - group: ""
    resources: [persistentvolumes, persistentvolumes/status, persistentvolumeclaims, persistentvolumeclaims/status]
`

// shared is the control plane of all tests. It is started when the first one
// asks for it, so that tests of pure functions can be run without.
var shared struct {
	once sync.Once
	cp   *controlplane.ControlPlane
	err  error
}

// sharedControlPlane returns the control plane of all tests. Tests that stop a
// part of it must not be parallel, which keeps them apart from all that are.
func sharedControlPlane(t *testing.T) *controlplane.ControlPlane {
	t.Helper()
	shared.once.Do(func() {
		options := controlplane.Options{
			ControllerManager: true,
			Scheduler:         true,
			AuditPolicy:       auditPolicy,
			Output:            os.Stderr,
		}
		for variable, flag := range map[string]string{featureGatesEnv: "--feature-gates=", emulatedVersionEnv: "--emulated-version="} {
			if value := os.Getenv(variable); value != "" {
				options.APIServerArgs = append(options.APIServerArgs, flag+value)
				options.ControllerManagerArgs = append(options.ControllerManagerArgs, flag+value)
				options.SchedulerArgs = append(options.SchedulerArgs, flag+value)
			}
		}
		shared.cp, shared.err = controlplane.Start(context.Background(), options)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cp
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	// The tests wait, most of the time.
	if err := flag.Set("test.parallel", "12"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctrl.SetLogger(logr.Discard())
	gomega.SetDefaultEventuallyTimeout(time.Minute)
	gomega.SetDefaultEventuallyPollingInterval(25 * time.Millisecond)
	gomega.SetDefaultConsistentlyPollingInterval(50 * time.Millisecond)
	code := m.Run()
	if shared.cp != nil {
		if err := shared.cp.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the control plane:", err)
			return 1
		}
	}
	return code
}
