package docs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-storage/berth/test/controlplane"
	"github.com/berth-storage/berth/test/nfsserver"
)

const nodeName = "docs-node"

// stage is where commands of the documentation are run: a control plane with a
// node, kubectl as its administrator, and a copy of the checkout as the working
// directory. "sudo" runs what follows as it is.
type stage struct {
	t        *testing.T
	dir      string
	assets   string
	replacer []string
	commands []string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	assets, err := controlplane.FindAssets()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{AssetsDir: assets, ControllerManager: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &stage{t: t, dir: t.TempDir(), assets: assets}
	s.ok(plane.WriteKubeconfig(s.path("kubeconfig"), "administrator", "system:masters"))
	s.copyCheckout()
	for _, name := range []string{"pool", "local-path", "export"} {
		s.ok(os.Mkdir(s.path(name), 0o755))
	}
	s.add(fmt.Sprintf(`kubectl apply -f - <<<'{apiVersion: v1, kind: Node, metadata: {name: %[1]s, labels: {kubernetes.io/hostname: %[1]s}}}'`, nodeName))
	return s
}

func (s *stage) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// path is that of a file of the stage's own.
func (s *stage) path(name string) string {
	return filepath.Join(s.dir, name)
}

func (s *stage) write(path, content string) {
	s.t.Helper()
	s.ok(os.MkdirAll(filepath.Dir(path), 0o755))
	s.ok(os.WriteFile(path, []byte(content), 0o600))
}

// copyCheckout copies what git knows, so that commands may write into it.
func (s *stage) copyCheckout() {
	s.t.Helper()
	r := checkout(s.t)
	for path := range r.files {
		from, to := filepath.Join(r.root, path), filepath.Join(s.path("berth"), path)
		info, err := os.Stat(from)
		s.ok(err)
		if info.IsDir() {
			continue
		}
		content, err := os.ReadFile(from)
		s.ok(err)
		s.ok(os.MkdirAll(filepath.Dir(to), 0o755))
		s.ok(os.WriteFile(to, content, info.Mode()))
	}
}

// replace has what the documentation gives as an example replaced with what is
// there: pairs of old and new.
func (s *stage) replace(pairs ...string) {
	s.replacer = append(s.replacer, pairs...)
}

func (s *stage) add(command string) {
	// Other Berths of this machine may have the usual ports.
	command = strings.ReplaceAll(command, "berth controller ", "berth controller --metrics-bind-address=0 --health-probe-bind-address=0 ")
	s.commands = append(s.commands, strings.NewReplacer(s.replacer...).Replace(command))
}

func (s *stage) addScript(name string) {
	s.t.Helper()
	for _, b := range scripts[name].blocks(s.t) {
		s.add(b.code)
	}
}

// berth starts Berth, with these flags, as an administrator.
func (s *stage) berth(flags ...string) {
	s.add("make build")
	s.add("bin/berth controller --leader-elect=false --kubeconfig=$KUBECONFIG " + strings.Join(flags, " ") + " &")
}

// oldVolume makes the claim "data" with a bound volume of another provisioner.
func (s *stage) oldVolume(class, provisioner, annotation, source string) {
	s.add(fmt.Sprintf(`kubectl apply -f - <<'EOF'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[1]s}
provisioner: %[2]s
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: default}
spec: {storageClassName: %[1]s, accessModes: [ReadWriteOnce], resources: {requests: {storage: 3Gi}}, volumeName: old-%[1]s}
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: old-%[1]s
  annotations: {pv.kubernetes.io/provisioned-by: %[2]s, %[3]s}
spec:
  storageClassName: %[1]s
  accessModes: [ReadWriteOnce]
  capacity: {storage: 3Gi}
  persistentVolumeReclaimPolicy: Delete
  claimRef: {kind: PersistentVolumeClaim, apiVersion: v1, namespace: default, name: data}
  %[4]s
EOF
kubectl wait --for=jsonpath='{.status.phase}'=Bound --timeout=60s pvc/data`, class, provisioner, annotation, source))
}

// exportNFS exports a directory as /export/k8s, and returns the port.
func (s *stage) exportNFS(dir string) uint16 {
	s.t.Helper()
	return nfsserver.ForTest(s.t, nfsserver.Export{Path: dir, Pseudo: "/export/k8s"}).Port
}

func (s *stage) expectGone(object string) {
	s.t.Helper()
	s.commands = nil
	s.add("kubectl get --ignore-not-found -o name " + object)
	if out := s.run(); out != "" {
		s.t.Errorf("still there: %s", out)
	}
}

// deleteClaimAndExpectFile deletes the claim that took a directory over, and
// looks that its data is there as before.
func (s *stage) deleteClaimAndExpectFile(dir string) {
	s.t.Helper()
	s.commands = nil
	s.add("volume=$(kubectl get pvc data -o jsonpath='{.spec.volumeName}')")
	s.add("kubectl delete pvc data")
	s.add("kubectl wait --for=jsonpath='{.status.phase}'=Released --timeout=60s pv/$volume")
	s.run()
	if content, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(content) != "precious" {
		s.t.Errorf("the file holds %q, %v", content, err)
	}
}

// run runs all commands in one shell, ends what it has left running when the
// test ends, and returns what it printed.
func (s *stage) run() string {
	s.t.Helper()
	// A file, since what is left running may keep it open.
	output, err := os.CreateTemp(s.dir, "output")
	s.ok(err)
	defer output.Close()
	shell := exec.CommandContext(s.t.Context(), "bash", "-euo", "pipefail", "-c", "sudo() { \"$@\"; }\n"+strings.Join(s.commands, "\n"))
	shell.Dir = s.path("berth")
	shell.Env = append(os.Environ(), "KUBECONFIG="+s.path("kubeconfig"), "PATH="+s.assets+":"+os.Getenv("PATH"))
	shell.Stdout, shell.Stderr = output, output
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.ok(shell.Start())
	s.t.Cleanup(func() {
		if err := syscall.Kill(-shell.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			s.t.Error(err)
		}
	})
	failed := shell.Wait()
	printed, err := os.ReadFile(output.Name())
	s.ok(err)
	if failed != nil {
		s.t.Fatalf("%v; the commands:\n%s\nand what they printed:\n%s", failed, strings.Join(s.commands, "\n"), printed)
	}
	return string(printed)
}
