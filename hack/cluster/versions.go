package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-storage/berth/test/controlplane"
)

// release is a version of Kubernetes, and the module file that it is built by.
type release struct {
	version string // v1.34.4
	modFile string // go.mod for the newest, another one beside it or below bin otherwise
	// derived says that the module file is not kept in the repository but made
	// for the build.
	derived bool
}

const (
	newestModFile  = "go.mod"
	derivedModFile = "hyperkube.mod"
)

func (r release) isNewest() bool { return filepath.Base(r.modFile) == newestModFile }

// knownPatches are those that are built for a minor version that has no module
// file in the repository.
var knownPatches = map[string]string{"1.33": "v1.33.13", "1.35": "v1.35.4", "1.36": "v1.36.3"}

// chooseRelease finds what is wanted: the module in the folder source is of
// the newest version, the files go-1.34.mod and the like beside its go.mod are of
// others. A version without one is built by a file that is derived.
func chooseRelease(source string, wanted controlplane.Wanted) (release, error) {
	files, err := filepath.Glob(filepath.Join(source, "go-*.mod"))
	if err != nil {
		return release{}, err
	}
	known := map[string]bool{}
	for _, file := range append([]string{filepath.Join(source, newestModFile)}, files...) {
		version, err := kubernetesVersion(file)
		if err != nil {
			return release{}, err
		}
		if wanted.Has(version) {
			return release{version: version, modFile: file}, nil
		}
		known[minorOf(version)] = true
	}
	if wanted.Version != "" {
		return release{version: wanted.Version, derived: true}, nil
	}
	if version, ok := knownPatches[wanted.Minor]; ok {
		return release{version: version, derived: true}, nil
	}
	for minor := range knownPatches {
		known[minor] = true
	}
	return release{}, fmt.Errorf("%s=%s: say which patch, such as %s.1; only for %s it is known here",
		controlplane.VersionEnv, wanted.Minor, wanted.Minor, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
}

var kubernetesRequirement = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v\S+)`)

func kubernetesVersion(goMod string) (string, error) {
	text, err := os.ReadFile(goMod) //nolint:gosec // a file of the repository
	if err != nil {
		return "", err
	}
	match := kubernetesRequirement.FindSubmatch(text)
	if match == nil {
		return "", fmt.Errorf("%s does not require k8s.io/kubernetes", goMod)
	}
	return string(match[1]), nil
}

// numbersOf splits v1.34.4 into 1, 34 and 4.
func numbersOf(version string) []string {
	return strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
}

func minorOf(version string) string {
	return strings.Join(numbersOf(version)[:2], ".")
}

// goModule is what is read of a module file.
type goModule struct {
	Go      string
	GoDebug []struct{ Key, Value string }
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path string }
	}
}

// deriveModFile writes the module file of a version to path, from that of
// Kubernetes itself, unless it is there: what Kubernetes pins holds for its
// binaries here as well.
func deriveModFile(ctx context.Context, version, path string) error {
	_, err := os.Stat(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	upstream, err := kubernetesModule(ctx, version)
	if err != nil {
		return err
	}
	text, err := moduleText(version, upstream)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// kubernetesModule reads the module file that Kubernetes was released with.
func kubernetesModule(ctx context.Context, version string) (goModule, error) {
	var module struct{ GoMod, Error string }
	out, err := outsideModules(ctx, "mod", "download", "-json", "k8s.io/kubernetes@"+version)
	if failed := json.Unmarshal(out, &module); failed == nil && module.Error != "" {
		return goModule{}, explain(fmt.Errorf("download Kubernetes %s: %s", version, module.Error), "")
	}
	if err != nil {
		return goModule{}, err
	}
	out, err = outsideModules(ctx, "mod", "edit", "-json", module.GoMod)
	if err != nil {
		return goModule{}, err
	}
	var upstream goModule
	if err := json.Unmarshal(out, &upstream); err != nil {
		return goModule{}, fmt.Errorf("read %s: %w", module.GoMod, err)
	}
	return upstream, nil
}

// outsideModules runs a go command that must not look at a module around it.
func outsideModules(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the arguments are of this file
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, explain(fmt.Errorf("go %s: %w", args[0], err), string(exit.Stderr))
	}
	return out, err
}

// moduleText makes the module file of hyperkube for a version of Kubernetes: the
// parts of Kubernetes' own repository in the version that goes with it, etcd and
// cobra in those that it requires.
func moduleText(version string, upstream goModule) (string, error) {
	required := map[string]string{}
	for _, r := range upstream.Require {
		required[r.Path] = r.Version
	}
	numbers := numbersOf(version)
	if len(numbers) < 3 {
		return "", fmt.Errorf("%s is no version of the form v1.34.4", version)
	}
	staging := fmt.Sprintf("v0.%s.%s", numbers[1], numbers[2])
	var text strings.Builder
	fmt.Fprintf(&text, "module %s/hack/cluster/hyperkube\n\ngo %s\n\n", repositoryModule, upstream.Go)
	for _, setting := range upstream.GoDebug {
		fmt.Fprintf(&text, "godebug %s=%s\n\n", setting.Key, setting.Value)
	}
	fmt.Fprint(&text, "require (\n")
	for _, path := range []string{"github.com/spf13/cobra", "go.etcd.io/etcd/server/v3"} {
		if required[path] == "" {
			return "", fmt.Errorf("the modules of Kubernetes %s are without %s, so its version is not known", version, path)
		}
		fmt.Fprintf(&text, "\t%s %s\n", path, required[path])
	}
	for _, path := range []string{"k8s.io/client-go", "k8s.io/component-base", "k8s.io/kubectl"} {
		fmt.Fprintf(&text, "\t%s %s\n", path, staging)
	}
	fmt.Fprintf(&text, "\tk8s.io/kubernetes %s\n)\n\nreplace (\n", version)
	for _, r := range upstream.Replace {
		if strings.HasPrefix(r.New.Path, "./staging/") {
			fmt.Fprintf(&text, "\t%s => %s %s\n", r.Old.Path, r.Old.Path, staging)
		}
	}
	fmt.Fprint(&text, ")\n")
	return text.String(), nil
}

const repositoryModule = "github.com/berth-storage/berth"

// pin makes the module file that is kept in the repository for the minor version
// of a version, with its checksums.
func pin(ctx context.Context, text string) error {
	wanted, err := controlplane.ParseWanted(text)
	if err != nil {
		return err
	}
	if wanted.Version == "" {
		return fmt.Errorf("%q: say which patch, such as v1.34.4", text)
	}
	source, err := sourceFolder()
	if err != nil {
		return err
	}
	file := filepath.Join(source, "go-"+wanted.Minor)
	for _, name := range []string{file + ".mod", file + ".sum"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	b := &build{
		release: release{version: wanted.Version, modFile: file + ".mod", derived: true},
		source:  source, progress: newProgress(os.Stderr),
	}
	stop := b.progress.start()
	defer stop()
	_, err = b.stalePackages(ctx)
	return err
}
