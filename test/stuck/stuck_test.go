package stuck_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/test/nfsserver"
)

// installation is a site whose Berth runs.
type installation struct {
	*site
	one, two   *agent
	controller *process
}

// scenario makes a claim wait. It is told by the heading of its section.
type scenario struct {
	heading string
	make    func(*installation, *tenant)
}

// scenarios are in the order of the page. The last few take away what others
// need.
var scenarios = []scenario{
	{"No pod uses the claim yet", func(_ *installation, n *tenant) {
		n.class()
		n.claim()
	}},
	{"The claim names no class, and there is no default class", func(_ *installation, n *tenant) {
		n.claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
	}},
	{"There is no class of that name", func(_ *installation, n *tenant) {
		n.claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To("berth-hostpaht") })
	}},
	{"The class has an unknown parameter", func(_ *installation, n *tenant) {
		n.class(immediately, parameters("pools", "ssd"))
		n.claim()
	}},
	{"No node has the pool of the class", func(_ *installation, n *tenant) {
		n.class(immediately, parameters("pool", "nvme"))
		n.claim()
	}},
	{"No node has room: the pod waits, and the claim with it", func(i *installation, n *tenant) {
		n.class()
		i.expectCapacityTracked()
		n.claim(asking("900Ti"))
		n.pod("")
	}},
	{"No node has room: a class that binds immediately", func(_ *installation, n *tenant) {
		n.class(immediately)
		n.claim(asking("900Ti"))
	}},
	{"The class allows none of the nodes", func(_ *installation, n *tenant) {
		n.class(immediately, func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
				{Key: "topology.kubernetes.io/zone", Values: []string{"east"}},
			}}}
		})
		n.claim()
	}},
	{"The pod must run on a node without an agent", func(_ *installation, n *tenant) {
		n.class()
		n.claim()
		n.pod("node-3")
	}},
	{"The claim asks for a block volume", func(_ *installation, n *tenant) {
		n.class(immediately)
		n.claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) })
	}},
	{"The claim asks for ReadWriteMany", func(_ *installation, n *tenant) {
		n.class(immediately)
		n.claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		})
	}},
	{"The claim has a selector", func(_ *installation, n *tenant) {
		n.class(immediately)
		n.claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "fast"}}
		})
	}},
	{"The claim is to be filled from another", func(_ *installation, n *tenant) {
		n.class(immediately)
		n.claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "original"}
		})
	}},
	{"The path is taken", func(i *installation, n *tenant) {
		n.class(parameters("pathPattern", "shared-path"))
		first := n.claim(called("first"), onNode("node-1"))
		n.expectBound(first)
		n.claim(onNode("node-1"))
	}},
	{"The directory exists already", func(i *installation, n *tenant) {
		i.ok(os.Mkdir(filepath.Join(i.one.pools["default"], "old-data"), 0o750))
		n.class(parameters("pathPattern", "old-data"))
		n.claim(onNode("node-1"))
	}},
	{"The pool's disk is not mounted", func(i *installation, n *tenant) {
		n.class(parameters("pool", "ssd"))
		n.expectBound(n.claim(called("first"), onNode("node-1")))
		i.ok(os.Rename(i.one.pools["ssd"], i.one.pools["ssd"]+".unmounted"))
		i.ok(os.Mkdir(i.one.pools["ssd"], 0o750))
		n.claim(onNode("node-1"))
	}},
	{"The NFS server is down", func(i *installation, n *tenant) {
		server := i.nfs(nfsserver.Export{})
		server.Kill()
		n.class(immediately, ofServer(server))
		n.claim()
	}},
	{"The NFS export squashes root", func(i *installation, n *tenant) {
		n.class(immediately, ofServer(i.nfs(nfsserver.Export{Squash: nfsserver.RootSquash, AnonymousID: 65534})))
		n.claim()
	}},
	{"The agent of the node is down", func(i *installation, n *tenant) {
		n.class()
		i.two.kill()
		// The first to notice has a connection that breaks.
		n.claim(called("first"), onNode("node-2"))
		i.Eventually(func() string { return i.kubectl("describe", "pvc", "first", "--namespace="+n.name) }).
			Should(gomega.ContainSubstring("connection refused"))
		n.claim(onNode("node-2"))
		i.ok(i.client.Delete(i.t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: warmUp, Name: "node-2"}}))
		i.expectLogged("The volume's storage is unavailable")
	}},
	{"The node of the volume is gone", func(i *installation, n *tenant) {
		n.class()
		n.expectBound(n.claim(onNode("node-1")))
		i.ok(i.client.Delete(i.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}))
		n.pod("")
	}},
	{"Berth is not running", func(i *installation, n *tenant) {
		i.controller.stop()
		n.class(immediately)
		n.claim()
	}},
}

// onNode makes the claim one whose pod was given a node, as kube-scheduler does.
func onNode(node string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[volumehelpers.AnnSelectedNode] = node }
}

// nfs starts a server whose export is a directory that belongs to root.
func (i *installation) nfs(export nfsserver.Export) *nfsserver.Server {
	i.t.Helper()
	dir, err := os.MkdirTemp(i.dir, "export-")
	i.ok(err)
	i.ok(os.Chmod(dir, 0o755))
	export.Path, export.Pseudo = dir, "/export"
	return nfsserver.ForTest(i.t, export)
}

func ofServer(server *nfsserver.Server) func(*storagev1.StorageClass) {
	return func(c *storagev1.StorageClass) {
		c.Provisioner = nfs.Name
		parameters("server", nfsserver.Address, "share", "/export", "port", strconv.Itoa(int(server.Port)), "nfsVersion", "4.1")(c)
	}
}

// TestStuckClaims makes all the claims of the page wait, one after the other.
func TestStuckClaims(t *testing.T) {
	documented := readPage(t)
	i := &installation{site: newSite(t)}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		i.node(node)
	}
	i.controller = i.launch(i.controllerArgs("--lost-node-grace=2s")...)
	i.one, i.two = i.newAgent("node-1", "default", "ssd"), i.newAgent("node-2", "default")
	i.awaitCapacity()
	i.makeOutcomes(i.tenant("outcomes"))
	for number, s := range scenarios {
		t.Run(s.heading, func(t *testing.T) {
			here := &installation{site: i.in(t), one: i.one, two: i.two, controller: i.controller}
			want := documented[s.heading]
			if len(want) == 0 {
				t.Errorf("%s shows nothing for this", page)
			}
			n := here.tenant("team-" + strconv.Itoa(number+1))
			s.make(here, n)
			var printed string
			for _, w := range want {
				here.Eventually(func() error {
					printed = here.kubectl(append(strings.Fields(w.command), "--namespace="+n.name)...)
					return w.compare(parseEvents(t, strings.Split(printed, "\n")))
				}).Should(gomega.Succeed(), func() string { return "kubectl " + w.command + ":\n" + printed })
			}
			if len(want) == 0 {
				here.await(n)
			}
		})
	}
	checkLog(t, i.controller.said(), i.placed)
	for heading := range documented {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.heading == heading }) {
			t.Errorf("%s shows %q, which no test makes", page, heading)
		}
	}
}

// in returns the site for a subtest.
func (s *site) in(t *testing.T) *site {
	here := *s
	here.t, here.WithT = t, gomega.NewWithT(t)
	return &here
}

// warmUp is a namespace with a bound claim for each node that has an agent, which
// is called like the node.
const warmUp = "warm-up"

// awaitCapacity waits until kube-scheduler can know how much room both nodes have.
func (i *installation) awaitCapacity() {
	i.t.Helper()
	n := i.tenant(warmUp)
	n.class()
	for _, node := range []string{"node-1", "node-2"} {
		n.expectBound(n.claim(called(node), onNode(node)))
	}
}

// await shows what the page lacks.
func (s *site) await(n *tenant) {
	s.t.Helper()
	s.Eventually(func() string { return s.kubectl("describe", "pvc", claimName, "--namespace="+n.name) }).ShouldNot(gomega.ContainSubstring("<none>\n\n"))
	s.t.Log(s.kubectl("describe", "pvc", claimName, "--namespace="+n.name))
	s.t.Log(s.kubectl("describe", "pod", "--namespace="+n.name))
}
