// Command demo shows Berth at work on a real control plane, step by step, with
// the commands to type. It checks what it shows: when anything promised does
// not happen it says so and fails.
//
// It stays until Ctrl-C, so that one can go on by hand; with DEMO_ONCE=1 it
// ends by itself. With -nfs it shows the NFS driver instead of the hostpath
// driver, which needs NFS-Ganesha and root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// errInterrupted is why the demo ends when somebody presses Ctrl-C.
var errInterrupted = errors.New("interrupted")

func main() {
	tour := steps
	nfs := flag.Bool("nfs", false, "show the NFS driver")
	if flag.Parse(); *nfs {
		tour = nfsSteps
	}
	out := newScreen(os.Stdout)
	if err := run(out, tour); err != nil {
		out.Failure(err)
		os.Exit(1)
	}
}

// run sets the stage, plays the steps, and stays for as long as it is wanted.
func run(out *screen, tour []step) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // a second Ctrl-C ends the demo at once
		cancel(errInterrupted)
	}()

	began := time.Now()
	d := &demo{screen: out, cancel: cancel}
	defer func() { err = errors.Join(err, d.close()) }()
	for i, step := range tour {
		out.Step(i+1, step.title)
		if err := step.play(d, ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, step.title, err)
		}
	}
	out.Finale(fmt.Sprintf("All %d steps did what they promise, in %.0f s.", len(tour), time.Since(began).Seconds()))
	if os.Getenv("DEMO_ONCE") != "" {
		return nil
	}
	return d.stay(ctx)
}
