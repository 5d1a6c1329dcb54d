package chart

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/test/controlplane"
)

var (
	plane     *controlplane.ControlPlane
	planeOnce sync.Once
	errPlane  error
)

func TestMain(m *testing.M) {
	gomega.SetDefaultEventuallyTimeout(30 * time.Second)
	gomega.SetDefaultEventuallyPollingInterval(50 * time.Millisecond)
	code := m.Run()
	if plane != nil {
		if err := plane.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// apiServer returns a real API server for all tests of this package.
func apiServer(t *testing.T) *controlplane.ControlPlane {
	t.Helper()
	tool(t, helmEnv)
	planeOnce.Do(func() { plane, errPlane = controlplane.Start(context.Background(), controlplane.Options{}) })
	if errPlane != nil {
		t.Fatal(errPlane)
	}
	return plane
}
