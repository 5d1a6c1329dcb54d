package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-storage/berth/test/controlplane"
)

// The environment variables that say whether tests use a cluster.
const (
	// EnableEnv must be set for tests to start one: it takes root and minutes.
	EnableEnv = "BERTH_E2E"
	// RequireEnv, when set, makes what would be skipped fail.
	RequireEnv = "BERTH_REQUIRE_E2E"
)

// commands are what runs a node and its pods, and the Debian package of each.
var commands = map[string]string{
	"busybox":                 "busybox-static",
	"containerd":              "containerd",
	"containerd-shim-runc-v2": "containerd",
	"ctr":                     "containerd",
	"runc":                    "runc",
	"ip":                      "iproute2",
	"nsenter":                 "util-linux",
}

// cniFolders are where distributions and container runtimes install network plugins.
var cniFolders = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// cniPlugins are those that a node uses.
var cniPlugins = []string{"bridge", "host-local", "loopback"}

// Check reports whether this machine can run a cluster. The error names
// everything that is missing, and where to get it.
func Check() error {
	var problems []error
	if os.Geteuid() != 0 {
		problems = append(problems, errors.New("namespaces, mounts and containers need root"))
	}
	if _, err := cgroupFolders(); err != nil {
		problems = append(problems, err)
	}
	packages := map[string][]string{}
	for command, pkg := range commands {
		if _, err := exec.LookPath(command); err != nil {
			packages[pkg] = append(packages[pkg], command)
		}
	}
	for pkg, missing := range packages {
		slices.Sort(missing)
		problems = append(problems, fmt.Errorf("no %s (Debian: apt-get install %s)", strings.Join(missing, ", "), pkg))
	}
	if _, err := cniFolder(); err != nil {
		problems = append(problems, err)
	}
	if _, err := kubelet(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// SkipReason returns why tests that need a cluster do not run here, "" when they
// do. The error is the reason where RequireEnv says that they must run.
func SkipReason() (string, error) {
	if os.Getenv(roleEnv) != "" {
		return "", nil // checked before this process was started
	}
	required := os.Getenv(RequireEnv) != ""
	if os.Getenv(EnableEnv) == "" && !required {
		return `needs a cluster with real nodes: "make e2e" runs it`, nil
	}
	err := Check()
	if err == nil || required {
		return "", err
	}
	return "this machine cannot run a cluster with real nodes: " + strings.ReplaceAll(err.Error(), "\n", "; "), nil
}

func cniFolder() (string, error) {
	for _, dir := range cniFolders {
		if slices.IndexFunc(cniPlugins, func(name string) bool { return !isExecutable(filepath.Join(dir, name)) }) < 0 {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no CNI plugins %s in %s (Debian: apt-get install containernetworking-plugins)",
		strings.Join(cniPlugins, ", "), strings.Join(cniFolders, ", "))
}

func kubelet() (string, error) {
	assets, err := controlplane.FindAssets()
	if err != nil {
		return "", err
	}
	path := filepath.Join(assets, "kubelet")
	if !isExecutable(path) {
		return "", fmt.Errorf(`%s lacks kubelet, which only the newest Kubernetes is built with: unset %s and %s and run "make cluster-assets"`,
			assets, controlplane.AssetsEnv, controlplane.VersionEnv)
	}
	return path, nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
