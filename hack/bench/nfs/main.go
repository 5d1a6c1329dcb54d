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
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
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
	volumes, mounts, atOnce, rounds int
	versions                        []string
}

func start(ctx context.Context) error {
	if len(os.Args) > 1 && os.Args[1] == mountCommand {
		return serveMount(ctx, os.Args[2:])
	}
	var c config
	versions := flag.String("versions", "3,4.0,4.1", "versions of NFS, comma-separated")
	flag.IntVar(&c.volumes, "n", 1000, "volumes of a run")
	flag.IntVar(&c.mounts, "mount-n", 50, "volumes of a run with mounts")
	flag.IntVar(&c.rounds, "rounds", 3, "runs of each, in turn; the medians are printed")
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
		if err := compare(ctx, s, c, version, table); err != nil {
			return err
		}
	}
	return table.Flush()
}

// contender is a way that takes part, and its figures, one of each round.
type contender struct {
	name    string
	volumes int
	open    func(ctx context.Context, s *site, version, share string) (way, error)
	rounds  []figures
}

// compare runs all ways in turn, since a machine's speed drifts, and prints
// their medians. What is compared with the client's is the median of the rounds'
// ratios.
func compare(ctx context.Context, s *site, c config, version string, table io.Writer) error {
	contenders := []*contender{
		{name: "mkdir", volumes: c.volumes, open: newMkdir},
		{name: "client", volumes: c.volumes, open: newClient},
		{name: "driver", volumes: c.volumes, open: newDriver},
		{name: "mount", volumes: c.mounts, open: newMounts},
	}
	for round := range c.rounds {
		for _, with := range contenders {
			f, err := run(ctx, s, version, fmt.Sprintf("%s-%s-%d", with.name, version, round), with.volumes, c.atOnce, with.open)
			if err != nil {
				return fmt.Errorf("%s over version %s: %w", with.name, version, err)
			}
			with.rounds = append(with.rounds, f)
		}
	}
	limit := contenders[1].rounds
	for _, with := range contenders {
		created, removed, ofCreated, ofRemoved := []float64{}, []float64{}, []float64{}, []float64{}
		for i, f := range with.rounds {
			created, removed = append(created, f.created), append(removed, f.removed)
			ofCreated, ofRemoved = append(ofCreated, f.created/limit[i].created), append(ofRemoved, f.removed/limit[i].removed)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%.0f\t%.0f\t%.0f%% %.0f%%\t\n", version, with.name, with.volumes, c.atOnce,
			median(created), median(removed), 100*median(ofCreated), 100*median(ofRemoved))
	}
	return nil
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// figures are volumes a second.
type figures struct{ created, removed float64 }

// run makes all volumes, then deletes them.
func run(ctx context.Context, s *site, version, share string, volumes, atOnce int, open func(context.Context, *site, string, string) (way, error)) (f figures, err error) {
	w, err := open(ctx, s, version, share)
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
