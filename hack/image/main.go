// Command image builds container images from scratch, without Docker or a
// registry, as files that "docker load", "ctr images import" and "kind load
// image-archive" take:
//
//	go run ./hack/image berth      Berth itself
//	go run ./hack/image -arch all -oci berth
//	                               the same for all architectures, and all of
//	                               them in one file
//	go run ./hack/image pause      what holds a pod together in the test cluster
//	go run ./hack/image busybox    the tests' pods, from this machine's static busybox
//
// The same commit and the same Go make the same files. Versions and times come
// from git; nothing is passed in.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/berth-storage/berth/test/cluster/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// nonRoot is the user of Berth's image. Agents are started as root instead.
const nonRoot = "65532:65532"

type options struct {
	arch     string
	out      string
	tag      string
	oci      bool
	binaries bool
}

func run(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&o.arch, "arch", runtime.GOARCH, "architectures, as Go names them, with commas; or all")
	flags.StringVar(&o.out, "out", "dist", "folder for the files, NAME-ARCH.tar")
	flags.StringVar(&o.tag, "tag", images.BerthTag, "tag of Berth's image")
	flags.BoolVar(&o.oci, "oci", false, "also write NAME-oci.tar, one OCI layout with the images of all these architectures")
	flags.BoolVar(&o.binaries, "binaries", false, "also write the binaries, NAME-linux-ARCH")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("say which images to build: berth, pause, busybox")
	}
	architectures, err := parseArchitectures(o.arch)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o750); err != nil {
		return err
	}
	for _, name := range flags.Args() {
		if err := o.build(ctx, name, architectures); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// build writes the files of an image, and prints what each is.
func (o options) build(ctx context.Context, name string, architectures []string) error {
	makers := map[string]func(context.Context, string) (image, error){"berth": o.berth, "pause": o.pause, "busybox": o.busybox}
	makeImage, ok := makers[name]
	if !ok {
		return errors.New("no such image: want berth, pause or busybox")
	}
	var all []image
	for _, arch := range architectures {
		i, err := makeImage(ctx, arch)
		if err != nil {
			return err
		}
		path := images.File(o.out, name, arch)
		if err := writeFile(path, 0o644, i.write); err != nil {
			return err
		}
		fmt.Println(path, i.Ref)
		if o.binaries {
			if err := o.writeBinary(name, i); err != nil {
				return err
			}
		}
		all = append(all, i)
	}
	if !o.oci {
		return nil
	}
	l, err := newLayout(all)
	if err != nil {
		return err
	}
	path := filepath.Join(o.out, name+"-oci.tar")
	fmt.Println(path, all[0].Ref, l.digest())
	return writeFile(path, 0o644, l.write)
}

// writeBinary writes the program that an image consists of.
func (o options) writeBinary(name string, i image) error {
	if len(i.Files) != 1 {
		return fmt.Errorf("-binaries: this image is not of one program")
	}
	return writeFile(filepath.Join(o.out, name+"-linux-"+i.Arch), 0o755, func(w io.Writer) error {
		_, err := w.Write(i.Files[0].Content)
		return err
	})
}

// writeFile replaces a file only when what is written is complete.
func writeFile(path string, mode os.FileMode, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(mode), write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (o options) pause(ctx context.Context, arch string) (image, error) {
	binary, _, err := compile(ctx, arch, "./hack/image/pause")
	if err != nil {
		return image{}, err
	}
	return image{
		Ref:        images.Pause,
		Arch:       arch,
		User:       nonRoot,
		Entrypoint: []string{"/pause"},
		Files:      []file{{Path: "pause", Mode: 0o755, Content: binary}},
	}, nil
}

// busybox makes an image of the busybox that is installed here.
func (o options) busybox(ctx context.Context, arch string) (image, error) {
	if arch != runtime.GOARCH {
		return image{}, fmt.Errorf("the busybox of this machine is for %s, not %s", runtime.GOARCH, arch)
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return image{}, fmt.Errorf("%w (Debian: apt-get install busybox-static)", err)
	}
	if err := checkStatic(path); err != nil {
		return image{}, err
	}
	binary, err := os.ReadFile(path) //nolint:gosec // the busybox in PATH
	if err != nil {
		return image{}, err
	}
	applets, err := exec.CommandContext(ctx, path, "--list").Output() //nolint:gosec // the busybox in PATH
	if err != nil {
		return image{}, fmt.Errorf("list its commands: %w", err)
	}
	files := []file{
		{Path: "bin", Mode: 0o755, Folder: true},
		{Path: "bin/busybox", Mode: 0o755, Content: binary},
		{Path: "etc", Mode: 0o755, Folder: true},
		{Path: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "etc/group", Mode: 0o644, Content: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "tmp", Mode: 0o1777, Folder: true},
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			files = append(files, file{Path: "bin/" + name, Link: "busybox"})
		}
	}
	return image{Ref: images.Busybox, Arch: arch, Cmd: []string{"sh"}, Files: files}, nil
}
