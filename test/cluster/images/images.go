// Package images names the container images that hack/image builds, has them
// built, and finds them.
package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/berth-storage/berth/test/controlplane"
)

const (
	// BerthName is Berth's image, as the manifests in config/ name it.
	BerthName = "ghcr.io/berth-storage/berth"
	// BerthTag is the tag of an image that was built from a checkout.
	BerthTag = "dev"
	// Pause holds the namespaces of every pod.
	Pause = "registry.k8s.io/pause:3.10.1"
	// Busybox is what the tests' pods run.
	Busybox = "docker.io/library/busybox:berth-test"
)

// File returns the path of an image's file in a folder.
func File(dir, name, arch string) string {
	return filepath.Join(dir, name+"-"+arch+".tar")
}

// dist returns the folder that images are built in.
func dist() (string, error) {
	root, err := controlplane.RepositoryRoot()
	return filepath.Join(root, "dist"), err
}

// Build has hack/image build the images of those names (berth, pause, busybox)
// for this machine.
func Build(ctx context.Context, names ...string) error {
	out, err := dist()
	if err != nil {
		return err
	}
	args := append([]string{"run", "./hack/image", "-out", out}, names...)
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // a command of this repository
	build.Dir = filepath.Dir(out)
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build images: %w\n%s", err, output)
	}
	return nil
}

// Find returns the files of images that were built for this machine.
func Find(names ...string) ([]string, error) {
	out, err := dist()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range names {
		path := File(out, name, runtime.GOARCH)
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("image %s is not built: %w", name, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
