// Command nfs measures how many volumes a second come and go on a real NFS
// server on loopback, without Kubernetes:
//
//	driver  berth's NFS driver: ownership marker, directory, mode; then trash
//	client  the calls that the driver can't do without, and nothing else: the
//	        limit. It writes markers, since a directory without one could belong
//	        to anybody, and looks at marker and directory before it deletes
//	mkdir   a directory and its mode, then rename and rmdir: what is left when
//	        nobody keeps books
//	mount   mount, mkdir, unmount for each volume, and mount, remove, unmount to
//	        delete it, the way csi-driver-nfs works. Without the kernel's NFS
//	        client the mount is a FUSE process that speaks NFS, so its figures
//	        show the shape, not the speed, of a real mount
//
// It needs root and NFS-Ganesha.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berth-storage/berth/test/nfsserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// config is what to measure.
type config struct {
	volumes, mounts, atOnce int
	versions                []string
}

func start(ctx context.Context) error {
	if len(os.Args) > 1 && os.Args[1] == mountCommand {
		return serveMount(ctx, os.Args[2:])
	}
	var c config
	versions := flag.String("versions", "3,4.0,4.1", "versions of NFS, comma-separated")
	flag.IntVar(&c.volumes, "n", 1000, "volumes of a run")
	flag.IntVar(&c.mounts, "mount-n", 50, "volumes of a run with mounts")
	flag.IntVar(&c.atOnce, "at-once", 16, "volumes that are worked on at a time")
	flag.Parse()
	c.versions = strings.Split(*versions, ",")
	return measure(ctx, c)
}

// way is a way to make and delete volumes.
type way interface {
	create(ctx context.Context, volume int) error
	remove(ctx context.Context, volume int) error
	close() error
}

// site is a server and what it exports.
type site struct {
	server *nfsserver.Server
	base   string // of all shares
	dir    string // for everything else
}

// share makes a new directory on the server and returns its path as version
// names it.
func (s *site) share(name, version string) (string, error) {
	if err := os.Mkdir(filepath.Join(s.base, name), 0o755); err != nil { //nolint:gosec // an export
		return "", err
	}
	if version == "3" {
		return filepath.Join(s.base, name), nil
	}
	return "/export/" + name, nil
}

func measure(ctx context.Context, c config) (err error) {
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &site{base: filepath.Join(dir, "export"), dir: dir}
	if err := os.Mkdir(s.base, 0o755); err != nil { //nolint:gosec // an export
		return err
	}
	s.server, err = nfsserver.Start(ctx, nfsserver.Options{
		Dir: filepath.Join(dir, "server"), Exports: []nfsserver.Export{{Path: s.base, Pseudo: "/export"}},
	})
	if err != nil {
		return err
	}
	defer s.server.Kill()

	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "NFS\tway\tvolumes\tat once\tcreated/s\tdeleted/s\tof the client's\t\n")
	for _, version := range c.versions {
		var limit figures
		for _, contender := range []struct {
			name    string
			volumes int
			open    func(context.Context, *site, string) (way, error)
		}{{"mkdir", c.volumes, newMkdir}, {"client", c.volumes, newClient}, {"driver", c.volumes, newDriver}, {"mount", c.mounts, newMounts}} {
			f, err := run(ctx, s, version, contender.volumes, c.atOnce, contender.open)
			if err != nil {
				return fmt.Errorf("%s over version %s: %w", contender.name, version, err)
			}
			if contender.name == "client" {
				limit = f
			}
			of := ""
			if limit.created > 0 {
				of = fmt.Sprintf("%.0f%% %.0f%%", 100*f.created/limit.created, 100*f.removed/limit.removed)
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%.0f\t%.0f\t%s\t\n", version, contender.name, contender.volumes, c.atOnce, f.created, f.removed, of)
		}
	}
	return table.Flush()
}

// figures are volumes a second.
type figures struct{ created, removed float64 }

// run makes all volumes, then deletes them.
func run(ctx context.Context, s *site, version string, volumes, atOnce int, open func(context.Context, *site, string) (way, error)) (f figures, err error) {
	w, err := open(ctx, s, version)
	if err != nil {
		return figures{}, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.create(ctx, 0); err != nil { // connects, and makes what is made once
		return figures{}, err
	}
	if f.created, err = rate(ctx, volumes, atOnce, w.create); err != nil {
		return figures{}, fmt.Errorf("create: %w", err)
	}
	if f.removed, err = rate(ctx, volumes, atOnce, w.remove); err != nil {
		return figures{}, fmt.Errorf("delete: %w", err)
	}
	return f, nil
}

// rate calls f for each volume and returns how many it did a second.
func rate(ctx context.Context, volumes, atOnce int, f func(context.Context, int) error) (float64, error) {
	begun := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := 1; i <= volumes; i++ {
		group.Go(func() error { return f(ctx, i) })
	}
	err := group.Wait()
	return float64(volumes) / time.Since(begun).Seconds(), err
}
