package e2e_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/test/cluster"
)

const berthNamespace = "berth-system"

// process is the first process of a container, as its node's /proc shows it.
type process struct {
	node *cluster.Node
	pid  string
}

// agents returns the agents' processes, by node.
func agents(t *testing.T, g *WithT) map[string]process {
	t.Helper()
	pods, err := shared.Client().CoreV1().Pods(berthNamespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=agent"})
	g.Expect(err).NotTo(HaveOccurred())
	found := map[string]process{}
	for _, pod := range pods.Items {
		node := shared.Node(pod.Spec.NodeName)
		_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		tasks, err := node.Command(t.Context(), "ctr", "--namespace=k8s.io", "tasks", "list").Output()
		g.Expect(err).NotTo(HaveOccurred())
		for line := range strings.Lines(string(tasks)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == id {
				found[node.Name()] = process{node: node, pid: fields[1]}
			}
		}
	}
	g.Expect(found).To(HaveLen(len(shared.Nodes())))
	return found
}

// file returns the path of a file in the process's folder of /proc.
func (p process) file(name string) string {
	return p.node.Path(filepath.Join("/proc", p.pid, name))
}

// TestAgentNeverCallsAnybody: after it has made and removed a volume, an agent
// has opened no TCP connection and sent no datagram, ever. Its network namespace
// counts those that failed too.
func TestAgentNeverCallsAnybody(t *testing.T) {
	r := newRoom(t)
	for node, agent := range agents(t, r.WithT) {
		r.claim(node, "wait", "1Mi")
		r.run(on(node, newPod(node, "true", ofClaim(node))), corev1.PodSucceeded)
		v := r.volumeOf(node)
		r.deletePods(node)
		r.kubectl("delete", "pvc", node)
		r.Eventually(removed(t.Context(), v)).Should(Succeed())

		counters, err := os.ReadFile(agent.file("net/snmp"))
		r.Expect(err).NotTo(HaveOccurred())
		r.Expect(counter(string(counters), "Tcp", "PassiveOpens")).NotTo(Equal("0"), "connections that the agent on %s has accepted", node)
		r.Expect(counter(string(counters), "Tcp", "ActiveOpens")).To(Equal("0"), "connections that the agent on %s has begun", node)
		r.Expect(counter(string(counters), "Udp", "OutDatagrams")).To(Equal("0"), "datagrams that the agent on %s has sent", node)
	}
}

// counter reads a value of /proc/net/snmp: a line of names, then one of values.
func counter(text, protocol, name string) string {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range names {
			if names[i] == name && i < len(fields) {
				return fields[i]
			}
		}
	}
	return "no counter " + protocol + " " + name
}

func TestAgentHasNoTokenAndTheCapabilitiesOfItsManifest(t *testing.T) {
	r := newRoom(t)
	for node, agent := range agents(t, r.WithT) {
		r.Expect(agent.file("root/var/run/secrets")).NotTo(BeAnExistingFile(), "service account of the agent on %s", node)
		status, err := os.ReadFile(agent.file("status"))
		r.Expect(err).NotTo(HaveOccurred())
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			r.Expect(string(status)).To(ContainSubstring(fmt.Sprintf("%s:\t%016x\n", set, agentCapabilities)))
		}
		r.Expect(string(status)).To(ContainSubstring("NoNewPrivs:\t1\n"))
		r.Expect(string(status)).To(ContainSubstring("Seccomp:\t2\n"))
	}
}

// agentCapabilities are those of config/agent/agent.yaml: CHOWN, DAC_OVERRIDE,
// FOWNER, FSETID and SYS_ADMIN.
const agentCapabilities = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<21

// TestControllersKeyIsOnNoNode looks for it wherever a kubelet keeps what it
// gives to pods.
func TestControllersKeyIsOnNoNode(t *testing.T) {
	r := newRoom(t)
	secrets := shared.Client().CoreV1().Secrets(berthNamespace)
	controller, err := secrets.Get(t.Context(), "berth-controller-tls", metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	authority, err := secrets.Get(t.Context(), "berth-ca", metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())
	agent, err := secrets.Get(t.Context(), "berth-agent-tls", metav1.GetOptions{})
	r.Expect(err).NotTo(HaveOccurred())

	for _, node := range shared.Nodes() {
		for _, secret := range []*corev1.Secret{controller, authority} {
			r.Expect(filesWith(t, node.Path("/var/lib/kubelet/pods"), secret.Data["tls.key"])).To(BeEmpty(),
				"key of %s on %s", secret.Name, node.Name())
		}
		r.Expect(filesWith(t, node.Path("/var/lib/kubelet/pods"), agent.Data["tls.key"])).NotTo(BeEmpty())
	}
	block, _ := pem.Decode(agent.Data["tls.crt"])
	certificate, err := x509.ParseCertificate(block.Bytes)
	r.Expect(err).NotTo(HaveOccurred())
	r.Expect(certificate.ExtKeyUsage).To(Equal([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}), "use of the agents' certificate")
}

// filesWith returns the small files below dir that hold text.
func filesWith(t *testing.T, dir string, text []byte) []string {
	t.Helper()
	if len(text) == 0 {
		t.Fatal("nothing to look for")
	}
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		// Files of pods come and go.
		if err == nil && entry.Type().IsRegular() && holds(path, text) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// holds reports whether a file is small, can be read, and has text in it.
func holds(path string, text []byte) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() > 1<<20 {
		return false
	}
	content, err := os.ReadFile(path)
	return err == nil && bytes.Contains(content, text)
}
