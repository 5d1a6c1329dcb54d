package controlplane_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/test/controlplane"
)

// victimEnv, when set, makes the test binary start a control plane in the folder
// it names and wait to be killed.
const victimEnv = "BERTH_TEST_CONTROL_PLANE_VICTIM"

func TestStopLeavesNoProcessAndNoFolder(t *testing.T) {
	t.Parallel()
	cp, err := controlplane.Start(t.Context(), controlplane.Options{ControllerManager: true})
	if err != nil {
		t.Fatal(err)
	}
	// An open watch makes the API server linger when it is asked to end.
	watch, err := clientFor(t, cp.Config()).CoreV1().PersistentVolumes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	pids := pidsIn(t, cp.Dir())
	if len(pids) != 3 {
		t.Errorf("%d processes noted: %v, want 3", len(pids), pids)
	}
	if err := cp.Stop(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d outlives Stop", pid)
		}
	}
	if _, err := os.Stat(cp.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder outlives Stop: %v", err)
	}
}

func TestKilledParentTakesItsControlPlaneAlong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim := exec.Command(os.Args[0])
	victim.Env = append(os.Environ(), victimEnv+"="+dir)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started\n" {
		t.Fatalf("the victim said %q: %v", line, err)
	}
	pids := pidsIn(t, dir)
	if len(pids) != 4 {
		t.Errorf("%d processes noted: %v, want 4", len(pids), pids)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	await(t, func(context.Context) (bool, error) {
		for _, pid := range pids {
			if alive(pid) {
				return false, nil
			}
		}
		return true, nil
	})
}

func TestFailedStartShowsTheLogAndLeavesNothing(t *testing.T) {
	tests := map[string]struct {
		options controlplane.Options
		want    string
	}{
		"kube-apiserver": {
			options: controlplane.Options{APIServerArgs: []string{"--no-such-flag=1"}},
			want:    "unknown flag: --no-such-flag",
		},
		"kube-controller-manager": {
			options: controlplane.Options{ControllerManager: true, ControllerManagerArgs: []string{"--root-ca-file=/nowhere"}},
			want:    "/nowhere",
		},
	}
	for component, tt := range tests {
		t.Run(component, func(t *testing.T) {
			t.Parallel()
			tt.options.Dir = t.TempDir()
			_, err := controlplane.Start(t.Context(), tt.options)
			if err == nil {
				t.Fatal("Start succeeded")
			}
			if text := err.Error(); !strings.Contains(text, "start "+component) || !strings.Contains(text, tt.want) {
				t.Errorf("Start = %v, want the component's name and %q", err, tt.want)
			}
			if pids := pidsIn(t, tt.options.Dir); len(pids) != 0 {
				t.Errorf("processes %v left", pids)
			}
		})
	}
}

func TestCancelledStartReturns(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	// The first line is written when etcd is ready, and kube-apiserver comes next.
	_, err := controlplane.Start(ctx, controlplane.Options{Output: writerFunc(func() { cancel() })})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v, want %v", err, context.Canceled)
	}
}

// writerFunc is called for what is written.
type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

func beVictim() {
	_, err := controlplane.Start(context.Background(), controlplane.Options{
		Dir:               os.Getenv(victimEnv),
		ControllerManager: true,
		Scheduler:         true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("started")
	select {}
}

// pidsIn returns the process ids noted in a control plane's folder.
func pidsIn(t *testing.T, dir string) []int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "run", "*.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// alive reports whether a process exists that is more than a zombie nobody has
// waited for, which is what an orphan may stay in a container without an init.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}
