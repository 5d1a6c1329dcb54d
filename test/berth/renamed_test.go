package berth_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	poolIDKey = "berth.storage/pool-id"
	// settled is how long nothing must happen that a sweep a second would do.
	settled = 5 * time.Second
)

// metricsOn has a controller serve its metrics, and returns a function that reads
// one: the sum over its labels, -1 while there is none.
func (s *site) metricsOn() (flag string, read func(name string) float64) {
	s.t.Helper()
	address := freeAddressOf(s.t, net.IPv4(127, 0, 0, 1))
	return "--metrics-bind-address=" + address, func(name string) float64 {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return -1
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		s.ok(err)
		sum, found := 0.0, false
		for line := range strings.Lines(string(text)) {
			if series, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (series == name || strings.HasPrefix(series, name+"{")) {
				n, err := strconv.ParseFloat(value, 64)
				s.ok(err)
				sum, found = sum+n, true
			}
		}
		if !found {
			return -1
		}
		return sum
	}
}

// without takes annotations away from volumes, as if they had been made before there
// were such.
func (s *site) without(annotation string, volumes ...*corev1.PersistentVolume) {
	s.t.Helper()
	for _, v := range volumes {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, annotation)
		s.ok(s.client.Patch(s.t.Context(), v, client.RawPatch("application/merge-patch+json", patch)))
	}
}

func (s *site) node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
}

// TestNodeRenamed: the machine gets another name, and Berth starts under it. No
// directory and no marker goes, it is told, and volumes are ended and grown.
func TestNodeRenamed(t *testing.T) {
	for _, from := range []string{"this version", "a version without pool ids"} {
		t.Run(from, func(t *testing.T) {
			s := newSite(t)
			s.class(s.name)
			berth := s.start("", swept...)
			empty, full := s.claim("empty"), s.claim("full")
			emptyVolume, fullVolume := s.expectBound(empty), s.expectBound(full)
			s.ok(os.WriteFile(filepath.Join(s.dirOf(fullVolume), "data"), []byte("precious"), 0o600))
			berth.stop()
			if from != "this version" {
				s.without(poolIDKey, emptyVolume, fullVolume)
			}
			s.delete(s.node(s.name))
			renamed := s.node(s.name + "-renamed")
			s.create(renamed)

			flag, metric := s.metricsOn()
			berth = s.start("", append([]string{"--node-name=" + renamed.Name, flag}, swept...)...)
			s.Eventually(func() float64 { return metric("berth_orphaned_volumes") }).Should(gomega.BeZero())
			s.Consistently(s.inventory, settled).Should(gomega.Equal(inventory{volumes: 2, directories: 2, markers: 2}))
			for name, want := range map[string]float64{
				"berth_orphaned_volumes": 0, "berth_orphaned_volumes_removed_total": -1, "berth_volumes_without_storage": 0, "berth_stray_volumes": 0,
			} {
				if got := metric(name); got != want {
					t.Errorf("%s = %v, want %v", name, got, want)
				}
			}
			for _, v := range []*corev1.PersistentVolume{emptyVolume, fullVolume} {
				s.Eventually(func() string { s.get(v); return v.Annotations[poolIDKey] }).ShouldNot(gomega.BeEmpty())
			}

			s.Eventually(func() float64 { return metric("berth_moved_volumes") }).WithTimeout(2 * time.Minute).Should(gomega.Equal(2.0))
			s.Eventually(func() []string { return s.warnings(renamed) }).Should(gomega.ContainElement(gomega.ContainSubstring("name node %q", s.name)))

			patch := []byte(`{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}`)
			s.ok(s.client.Patch(t.Context(), full, client.RawPatch("application/merge-patch+json", patch)))
			s.Eventually(func() string { s.get(full); return full.Status.Capacity.Storage().String() }).Should(gomega.Equal("2Mi"))
			s.delete(empty)
			s.delete(full)
			s.expectNothingLeft()
			berth.stop()
		})
	}
}

// held counts directories and markers on all nodes.
func (f *fleet) held() (count int) {
	f.t.Helper()
	for _, node := range f.nodes {
		for _, pattern := range []string{"[^.]*", ".berth/volumes/*.json"} {
			found, err := filepath.Glob(filepath.Join(node.pool, pattern))
			f.ok(err)
			count += len(found)
		}
	}
	return count
}

// moveTo has the disk of a node be one of another name, or of another machine.
func (f *fleet) moveTo(node *agentNode, name string) {
	f.t.Helper()
	node.agent.stop()
	slice := f.slice(node)
	f.delete(slice)
	f.create(f.node(name))
	node.name, node.address = name, freeAddressOf(f.t, machineAddress(f.t))
	f.publish(node)
	f.startAgent(node)
}

// TestFleetRenamed: six nodes get other names while the controller runs, or before it
// starts.
func TestFleetRenamed(t *testing.T) {
	f := newNodes(t, 6)
	f.class(f.name, storagev1.VolumeBindingWaitForFirstConsumer)
	flag, metric := f.metricsOn()
	f.startController(append(swept, flag)...)
	f.mount()
	claims := make([]*corev1.PersistentVolumeClaim, len(f.nodes))
	for i, node := range f.nodes {
		claims[i] = f.claimOn(fmt.Sprintf("data-%d", i), node)
		volume := f.expectBound(claims[i])
		if i%2 == 0 {
			f.without(poolIDKey, volume)
		}
	}
	f.Eventually(f.held).Should(gomega.Equal(12))
	for i, node := range f.nodes {
		if i == 3 { // the others are renamed while no controller runs
			f.controller.stop()
		}
		old := node.name
		f.moveTo(node, old+"-renamed")
		f.delete(f.node(old))
	}
	f.startController(append(swept, flag)...)
	f.Eventually(func() float64 { return metric("berth_moved_volumes") }).WithTimeout(3 * time.Minute).Should(gomega.Equal(6.0))
	f.Consistently(f.held, settled).Should(gomega.Equal(12))
	if orphans, missing := metric("berth_orphaned_volumes"), metric("berth_volumes_without_storage"); orphans != 0 || missing != 0 {
		t.Errorf("%v orphans, %v missing", orphans, missing)
	}
	for _, claim := range claims {
		f.delete(claim)
	}
	f.Eventually(f.volumes).WithTimeout(3 * time.Minute).Should(gomega.BeEmpty())
	f.Eventually(f.held).Should(gomega.BeZero())
	f.controller.stop()
	if output := f.controller.output.String(); strings.Contains(output, "forbidden") {
		t.Error("the controller asked for something that it has no right to")
	}
}

// TestDiskMovedAndCopied: a disk is moved to another node while its own stays, and
// then copied to a third.
func TestDiskMovedAndCopied(t *testing.T) {
	f := newNodes(t, 2)
	f.class(f.name, storagev1.VolumeBindingWaitForFirstConsumer)
	flag, metric := f.metricsOn()
	f.startController(append(swept, flag)...)
	f.mount()
	first, second := f.nodes[0], f.nodes[1]
	one, two := f.claimOn("one", first), f.claimOn("two", second)
	volume := f.expectBound(one)
	f.expectOn(two, second)

	// What was first's is second's, which has a new disk in its place.
	first.agent.stop()
	second.agent.stop()
	first.pool, second.pool = second.pool, first.pool
	f.startAgent(first)
	f.startAgent(second)
	f.controller.stop()
	f.startController(append(swept, flag)...)
	f.Eventually(func() float64 { return metric("berth_moved_volumes") }).WithTimeout(2 * time.Minute).Should(gomega.Equal(2.0))
	f.Consistently(f.held, settled).Should(gomega.Equal(4))

	// A copy.
	copied := &agentNode{name: f.name + "-copy", address: freeAddressOf(t, machineAddress(t)), pool: filepath.Join(f.dir, "copy")}
	f.ok(os.CopyFS(copied.pool, os.DirFS(second.pool)))
	f.create(f.node(copied.name))
	f.publish(copied)
	f.nodes = append(f.nodes, copied)
	f.startAgent(copied)
	f.Eventually(func() float64 { return metric("berth_shared_pools") }).WithTimeout(2 * time.Minute).Should(gomega.Equal(1.0))
	for _, name := range []string{copied.name, second.name} {
		node := f.node(name)
		f.get(node)
		f.Eventually(func() []string { return f.warnings(node) }).Should(gomega.ContainElement(gomega.And(
			gomega.ContainSubstring(copied.pool+" on node "+copied.name), gomega.ContainSubstring(second.pool+" on node "+second.name))))
	}
	refused := f.claimOn("refused", copied)
	f.Eventually(func() []string { return f.warnings(refused) }).Should(gomega.ContainElement(gomega.ContainSubstring("have the same pool id")))
	f.delete(one)
	f.Eventually(func() []string { return f.warnings(volume) }).Should(gomega.ContainElement(gomega.ContainSubstring("have the same pool id")))
	f.Consistently(f.held, settled).Should(gomega.Equal(6))

	// The way out that docs/operations.md has.
	copied.agent.stop()
	text := filepath.Join(copied.pool, ".berth", "pool.json")
	before, err := os.ReadFile(text)
	f.ok(err)
	id := volume.Annotations[poolIDKey]
	f.ok(os.WriteFile(text, []byte(strings.Replace(string(before), id, "COPY-OF-"+id, 1)), 0o600))
	f.startAgent(copied)
	f.Eventually(func() bool { return f.get(volume) }).WithTimeout(3*time.Minute).Should(gomega.BeFalse(), "the volume is not ended")
	if left, _ := filepath.Glob(filepath.Join(second.pool, "[^.]*")); len(left) > 0 {
		t.Errorf("left on node %s: %v", second.name, left)
	}
	f.controller.stop()
}
