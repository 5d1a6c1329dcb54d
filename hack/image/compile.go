package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-storage/berth/test/cluster/images"
	"github.com/berth-storage/berth/test/controlplane"
)

// architectures are those that Berth is built for.
var architectures = []string{"amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x"}

// levels are the oldest processors of each architecture that a binary runs on.
// They are set since they change what the compiler makes, and could come from
// somebody's environment.
var levels = map[string]string{
	"amd64":   "GOAMD64=v1",
	"arm":     "GOARM=7",
	"arm64":   "GOARM64=v8.0",
	"ppc64le": "GOPPC64=power8",
	"riscv64": "GORISCV64=rva20u64",
}

// variants are what the image specification calls these.
var variants = map[string]string{"arm": "v7", "arm64": "v8"}

// parseArchitectures reads the flag -arch: "all", or names with commas.
func parseArchitectures(value string) ([]string, error) {
	if value == "all" {
		return architectures, nil
	}
	names := strings.Split(value, ",")
	for _, name := range names {
		if !slices.Contains(architectures, name) {
			return nil, fmt.Errorf("-arch=%s: no architecture %q; write all, or some of %s", value, name, strings.Join(architectures, ","))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// stamp is what a binary knows about the commit it was built from. All of it is
// empty when it was built outside a git checkout.
type stamp struct {
	Version, Revision, Time string
}

// readStamp reads what Go has recorded in a binary.
func readStamp(path string) (stamp, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{Version: info.Main.Version}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			s.Revision = setting.Value
		case "vcs.time":
			s.Time = setting.Value
		}
	}
	return s, nil
}

// labels describe Berth's image, by the names of the image specification.
func (s stamp) labels() map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":         "berth",
		"org.opencontainers.image.description":   "Dynamic volume provisioner for Kubernetes: directories on nodes and NFS servers",
		"org.opencontainers.image.source":        "https://github.com/berth-storage/berth",
		"org.opencontainers.image.documentation": "https://github.com/berth-storage/berth/blob/main/README.md",
		"org.opencontainers.image.licenses":      "Apache-2.0",
	}
	for name, value := range map[string]string{"version": s.Version, "revision": s.Revision, "created": s.Time} {
		if value != "" {
			labels["org.opencontainers.image."+name] = value
		}
	}
	return labels
}

// berth makes the image of Berth: one binary, whose user is nobody.
func (o options) berth(ctx context.Context, arch string) (image, error) {
	binary, stamp, err := compile(ctx, arch, ".")
	if err != nil {
		return image{}, err
	}
	return image{
		Ref:        images.BerthName + ":" + o.tag,
		Arch:       arch,
		Created:    stamp.Time,
		Labels:     stamp.labels(),
		User:       nonRoot,
		Entrypoint: []string{"/berth"},
		Files:      []file{{Path: "berth", Mode: 0o755, Content: binary}},
	}, nil
}

// compile builds a static binary of a package of this repository. Whatever
// changes its bytes is said here, other than the sources and Go itself.
func compile(ctx context.Context, arch, pkg string) (_ []byte, s stamp, err error) {
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return nil, s, err
	}
	dir, err := os.MkdirTemp("", "berth-image-")
	if err != nil {
		return nil, stamp{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "binary")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=auto", "-ldflags=-s -w -buildid=", "-o", path, pkg) //nolint:gosec // a package of this repository
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off")
	if level := levels[arch]; level != "" {
		build.Env = append(build.Env, level)
	}
	if output, err := build.CombinedOutput(); err != nil {
		return nil, stamp{}, fmt.Errorf("go build %s: %w\n%s", pkg, err, output)
	}
	if s, err = readStamp(path); err != nil {
		return nil, stamp{}, err
	}
	binary, err := os.ReadFile(path) //nolint:gosec // just built
	return binary, s, err
}
