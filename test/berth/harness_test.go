package berth_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/provisioner/request"
	"github.com/berth-storage/berth/test/nfsserver"
)

var sites atomic.Int64

// site is a node with a pool on which berth runs, and a namespace and class of
// its own. Two sites must not be in use at the same time, since both have the same
// driver.
type site struct {
	*gomega.WithT
	t          *testing.T
	client     client.Client
	name       string // of the namespace, the class and the node
	dir        string // holds the pool, and what lies beside it
	pool       string // or share
	kubeconfig string
	// provisioner and parameters are those of the site's class.
	provisioner string
	parameters  []string
}

// newNFSSite is newSite with an NFS server in place of the node's disk.
func newNFSSite(t *testing.T, parameters ...string) *site {
	t.Helper()
	s := newSite(t)
	server := nfsserver.ForTest(t, nfsserver.Export{Path: s.pool, Pseudo: "/export"})
	s.provisioner = nfs.Name
	s.parameters = append(nfsParameters(server), parameters...)
	return s
}

func nfsParameters(server *nfsserver.Server) []string {
	return []string{"server", nfsserver.Address, "share", "/export", "port", strconv.Itoa(int(server.Port)), "nfsVersion", "4.1"}
}

func newSite(t *testing.T) *site {
	t.Helper()
	c, err := client.New(plane.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("site-%d", sites.Add(1))
	dir := t.TempDir()
	s := &site{
		WithT: gomega.NewWithT(t), t: t, client: c, name: name, dir: dir,
		pool: filepath.Join(dir, "pool"), kubeconfig: filepath.Join(dir, "kubeconfig"), provisioner: hostpath.Name,
	}
	s.ok(os.Mkdir(s.pool, 0o750))
	s.ok(plane.WriteKubeconfig(s.kubeconfig, berthUser, "system:masters"))
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	s.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}})
	return s
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) create(o client.Object) {
	s.t.Helper()
	s.ok(s.client.Create(s.t.Context(), o))
}

func (s *site) delete(o client.Object) {
	s.t.Helper()
	s.ok(client.IgnoreNotFound(s.client.Delete(s.t.Context(), o)))
}

// get reads o anew, and reports whether it exists.
func (s *site) get(o client.Object) bool {
	s.t.Helper()
	err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) {
		return false
	}
	s.ok(err)
	return true
}

// class creates a class of the site's driver, with parameters as key, value.
func (s *site) class(name string, parameters ...string) {
	s.t.Helper()
	parameters = append(slices.Clone(s.parameters), parameters...)
	class := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: name},
		Provisioner:       s.provisioner,
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate),
		Parameters:        map[string]string{},

		AllowVolumeExpansion: ptr.To(true),
	}
	for i := 0; i < len(parameters); i += 2 {
		class.Parameters[parameters[i]] = parameters[i+1]
	}
	s.create(class)
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), class) })
}

func (s *site) newClaim(name, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name, Annotations: map[string]string{}, Labels: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: sized("1Mi")},
		},
	}
}

func sized(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

// claim creates a claim of the site's class.
func (s *site) claim(name string) *corev1.PersistentVolumeClaim {
	s.t.Helper()
	claim := s.newClaim(name, s.name)
	s.create(claim)
	return claim
}

// process is a running berth.
type process struct {
	s      *site
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

// start starts berth for the site's pool.
func (s *site) start(at crashpoint.Point, flags ...string) *process {
	s.t.Helper()
	return s.launch(at, append([]string{
		"controller", "--kubeconfig=" + s.kubeconfig, "--node-name=" + s.name, "--pool=default=" + s.pool,
		"--metrics-bind-address=0", "--health-probe-bind-address=0", "--leader-elect=false",
	}, flags...)...)
}

// launch starts berth, which is killed when the test ends. Its output is shown
// when the test fails.
func (s *site) launch(at crashpoint.Point, args ...string) *process {
	s.t.Helper()
	p := &process{s: s, cmd: exec.Command(binary, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.Env = append(os.Environ(), "BERTH_CRASHPOINT="+string(at))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.ok(p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	s.t.Cleanup(func() {
		p.kill()
		if s.t.Failed() {
			s.t.Logf("output of berth %s with crash point %q:\n%s", args[0], at, p.output.String())
		}
	})
	return p
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop asks the process to end, and waits until it has.
func (p *process) stop() {
	p.s.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.s.t.Errorf("berth ended with status %d when asked to", code)
	}
}

// expectCrash waits until the process was killed by SIGKILL.
func (p *process) expectCrash() {
	p.s.t.Helper()
	p.s.Eventually(p.running).Should(gomega.BeFalse(), "berth did not reach its crash point")
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		p.s.t.Fatalf("berth ended with %s, want to be killed at the crash point", p.cmd.ProcessState)
	}
}

// expectBound waits until claim and a volume are Bound to each other, and
// returns the volume.
func (s *site) expectBound(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	s.t.Helper()
	volume := &corev1.PersistentVolume{}
	s.Eventually(func() string {
		s.get(claim)
		volume.Name = claim.Spec.VolumeName
		if claim.Status.Phase != corev1.ClaimBound || volume.Name == "" || !s.get(volume) {
			return "claim " + string(claim.Status.Phase)
		}
		return "claim Bound, volume " + string(volume.Status.Phase)
	}).Should(gomega.Equal("claim Bound, volume Bound"))
	return volume
}

// dirOf returns the directory of volume.
func (s *site) dirOf(volume *corev1.PersistentVolume) string {
	return filepath.Join(s.pool, volume.Annotations[request.AnnPath])
}

// volumes returns the names of the volumes of the site.
func (s *site) volumes() []string {
	s.t.Helper()
	var list corev1.PersistentVolumeList
	s.ok(s.client.List(s.t.Context(), &list))
	var names []string
	for _, v := range list.Items {
		if v.Annotations[hostpath.AnnNode] == s.name || strings.HasPrefix(v.Annotations[request.AnnClaim], s.name+"/") {
			names = append(names, v.Name)
		}
	}
	return names
}

// volumePhases returns the phases of those volumes.
func (s *site) volumePhases() []corev1.PersistentVolumePhase {
	s.t.Helper()
	var phases []corev1.PersistentVolumePhase
	for _, name := range s.volumes() {
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if s.get(volume) {
			phases = append(phases, volume.Status.Phase)
		}
	}
	return phases
}

// entries returns the names in a directory below the pool; none when it is not
// there.
func (s *site) entries(path ...string) []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(append([]string{s.pool}, path...)...))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (s *site) directories() []string {
	s.t.Helper()
	return slices.DeleteFunc(s.entries(), func(name string) bool { return name == ".berth" })
}

func (s *site) markers() []string {
	s.t.Helper()
	return slices.DeleteFunc(s.entries(".berth", "volumes"), func(name string) bool { return !strings.HasSuffix(name, ".json") })
}

// inventory counts what there is of volumes.
type inventory struct{ volumes, directories, markers, trash int }

func (s *site) inventory() inventory {
	s.t.Helper()
	return inventory{len(s.volumes()), len(s.directories()), len(s.markers()), len(s.entries(".berth", "trash"))}
}

func (s *site) expectNothingLeft() {
	s.t.Helper()
	s.Eventually(s.inventory).Should(gomega.Equal(inventory{}))
}

// warnings returns the notes of berth's warnings about o, a repeated one as often
// as it was repeated.
func (s *site) warnings(o client.Object) []string {
	s.t.Helper()
	var list eventsv1.EventList
	namespace := metav1.NamespaceDefault
	if o.GetNamespace() != "" {
		namespace = o.GetNamespace()
	}
	s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(namespace)))
	var notes []string
	for _, e := range list.Items {
		if e.ReportingController != "berth" || e.Regarding.UID != o.GetUID() || e.Type != corev1.EventTypeWarning {
			continue
		}
		notes = append(notes, e.Note)
		if e.Series != nil {
			notes = append(notes, slices.Repeat([]string{e.Note}, int(e.Series.Count)-1)...)
		}
	}
	return notes
}
