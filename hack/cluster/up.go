package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-storage/berth/test/controlplane"
)

type upOptions struct {
	dir                  string
	controllerManagerQPS int
}

// up runs a control plane until ctx is done.
func up(ctx context.Context, o upOptions) error {
	dir, err := outputFolder(o.dir, "cluster")
	if err != nil {
		return err
	}
	running, err := lock(lockPath(dir))
	if errors.Is(err, errLocked) {
		return fmt.Errorf(`a control plane already runs in %s: end it with "down", or pick another folder with --dir`, dir)
	}
	if err != nil {
		return err
	}
	defer running.Close()
	binaries, err := assets(ctx)
	if err != nil {
		return err
	}
	cp, err := controlplane.Start(ctx, controlplane.Options{
		AssetsDir:             binaries,
		Dir:                   dir,
		ControllerManager:     true,
		Scheduler:             true,
		ControllerManagerArgs: qpsFlags(o.controllerManagerQPS),
		Output:                os.Stderr,
	})
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := cp.WriteKubeconfig(kubeconfig, "admin", "system:masters"); err != nil {
		return errors.Join(err, cp.Stop())
	}
	fmt.Printf("export KUBECONFIG=%s\nexport PATH=%s:$PATH\n", kubeconfig, binaries)
	fmt.Fprintln(os.Stderr, "running; Ctrl-C ends it. Logs:", filepath.Join(dir, "logs"))
	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "stopping")
	return cp.Stop()
}

// qpsFlags raise kube-controller-manager's own limit on its requests, with the
// ratio of burst to rate that its defaults have.
func qpsFlags(qps int) []string {
	if qps == 0 {
		return nil
	}
	return []string{"--kube-api-qps=" + strconv.Itoa(qps), "--kube-api-burst=" + strconv.Itoa(qps*3/2)}
}

// down ends the control plane that runs in dir and waits until it is gone.
func down(ctx context.Context, dir string) error {
	dir, err := outputFolder(dir, "cluster")
	if err != nil {
		return err
	}
	free, err := lock(lockPath(dir))
	if err == nil {
		fmt.Fprintln(os.Stderr, "no control plane runs in", dir)
		return free.Close()
	}
	if !errors.Is(err, errLocked) {
		return err
	}
	pid, err := holder(lockPath(dir))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	free, err = awaitLock(ctx, lockPath(dir))
	if err != nil {
		return fmt.Errorf("process %d does not end: %w", pid, err)
	}
	return free.Close()
}

func lockPath(dir string) string {
	return filepath.Join(dir, "up.pid")
}
