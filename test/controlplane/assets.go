package controlplane

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
)

// AssetsEnv names the environment variable that points at the folder with the
// control plane's binaries. It is the variable envtest reads as well.
const AssetsEnv = "KUBEBUILDER_ASSETS"

// VersionEnv names the environment variable that says which Kubernetes to run,
// "1.34" or "v1.34.4", where several are built. It is the newest otherwise.
const VersionEnv = "KUBERNETES"

const modulePath = "github.com/berth-storage/berth"

// binaries are the programs a folder of assets must hold. kubectl is not started
// by this package, but everything that is handed the folder expects it there.
var binaries = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}

// ErrNoAssets is in the chain of the errors of [FindAssets] and [CheckAssets].
var ErrNoAssets = errors.New("no control plane binaries")

// FindAssets returns the folder with the control plane's binaries: the one that
// the environment variable KUBEBUILDER_ASSETS names, else the newest build below
// bin/k8s of the repository that the working directory belongs to, of the
// version that KUBERNETES asks for if it is set. The error says what is missing
// and how to get it.
func FindAssets() (string, error) {
	wanted, err := WantedVersion()
	if err != nil {
		return "", err
	}
	if dir := os.Getenv(AssetsEnv); dir != "" {
		if err := CheckAssets(dir); err != nil {
			return "", fmt.Errorf("%s: %w", AssetsEnv, err)
		}
		return dir, nil
	}
	root, err := RepositoryRoot()
	if err != nil {
		return "", fmt.Errorf("%w: %s is not set, and %w", ErrNoAssets, AssetsEnv, err)
	}
	dir, err := newestBuild(filepath.Join(root, "bin", "k8s"), wanted)
	if err != nil {
		return "", err
	}
	return dir, CheckAssets(dir)
}

// CheckAssets reports whether dir holds every binary of the control plane. The
// error names those that are missing.
func CheckAssets(dir string) error {
	var missing []string
	for _, name := range binaries {
		info, err := os.Stat(filepath.Join(dir, name)) //nolint:gosec // the developer names the folder
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	hint := `run "make cluster-assets" to build them`
	if slices.Contains(missing, "kube-controller-manager") && !slices.Contains(missing, "kube-apiserver") {
		hint = "setup-envtest's bundles come without kube-controller-manager and kube-scheduler, which bind volumes: unset " +
			AssetsEnv + ` and run "make cluster-assets" to build a complete set, or add the missing binaries of the same Kubernetes version`
	}
	return fmt.Errorf("%w: %s lacks %s; %s", ErrNoAssets, dir, strings.Join(missing, ", "), hint)
}

// RepositoryRoot returns the folder of the checkout that the working directory
// is in.
func RepositoryRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if module, err := moduleOf(filepath.Join(dir, "go.mod")); err == nil && module == modulePath {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of %s", start, modulePath)
		}
	}
}

// moduleOf returns the module path that a go.mod file declares.
func moduleOf(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // a go.mod above the working directory
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if module, ok := strings.CutPrefix(lines.Text(), "module "); ok {
			return strings.TrimSpace(module), nil
		}
	}
	return "", errors.Join(lines.Err(), fmt.Errorf("%s declares no module", path))
}

// Wanted is a Kubernetes version somebody asks for. The zero value stands for the
// newest.
type Wanted struct {
	// Minor is of the form "1.34".
	Minor string
	// Version is of the form "v1.34.4", "" when any patch will do.
	Version string
}

var wantedForm = regexp.MustCompile(`^v?(\d+\.\d+)(\.\d+)?$`)

// ParseWanted reads a version of the form 1.34, v1.34, 1.34.4 or v1.34.4, or "".
func ParseWanted(text string) (Wanted, error) {
	if text == "" {
		return Wanted{}, nil
	}
	parts := wantedForm.FindStringSubmatch(text)
	if parts == nil {
		return Wanted{}, fmt.Errorf("%s=%s: want a Kubernetes version such as 1.34 or v1.34.4", VersionEnv, text)
	}
	w := Wanted{Minor: parts[1]}
	if parts[2] != "" {
		w.Version = "v" + parts[1] + parts[2]
	}
	return w, nil
}

// WantedVersion returns the version that the environment asks for. It must not
// name a folder of binaries as well.
func WantedVersion() (Wanted, error) {
	text := os.Getenv(VersionEnv)
	if text != "" && os.Getenv(AssetsEnv) != "" {
		return Wanted{}, fmt.Errorf("%s=%s and %s are both set, and either says which Kubernetes to run: unset one", VersionEnv, text, AssetsEnv)
	}
	return ParseWanted(text)
}

// Has reports whether a version, of the form v1.34.4, is the one wanted.
func (w Wanted) Has(version string) bool {
	return (w.Minor == "" || strings.HasPrefix(version, "v"+w.Minor+".")) && (w.Version == "" || w.Version == version)
}

// newestBuild returns the subfolder of dir that is named by the highest
// Kubernetes version of those wanted.
func newestBuild(dir string, wanted Wanted) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var newest *version.Version
	var name string
	for _, entry := range entries {
		v, err := version.ParseSemantic(entry.Name())
		if err == nil && wanted.Has(entry.Name()) && (newest == nil || newest.LessThan(v)) {
			newest, name = v, entry.Name()
		}
	}
	if newest != nil {
		return filepath.Join(dir, name), nil
	}
	if wanted.Minor != "" {
		number := cmp.Or(wanted.Version, wanted.Minor)
		return "", fmt.Errorf(`%w: no Kubernetes %s is built below %s; run "make cluster-assets %s=%s"`, ErrNoAssets, number, dir, VersionEnv, number)
	}
	return "", fmt.Errorf(`%w: %s is not set and nothing is built below %s; run "make cluster-assets" (the first build takes about ten minutes), or set %s to a folder with %s`,
		ErrNoAssets, AssetsEnv, dir, AssetsEnv, strings.Join(binaries, ", "))
}
