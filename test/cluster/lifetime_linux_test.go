package cluster_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
)

// TestKilledParentLeavesNothing starts a cluster in another process, in
// namespaces within the ones of this test, and kills that process.
func TestKilledParentLeavesNothing(t *testing.T) {
	needCluster(t)
	g := NewWithT(t)
	temporary := t.TempDir()
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), victimEnv+"=1", "BERTH_CLUSTER_ROLE=", "BERTH_E2E=1", "TMPDIR="+temporary)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(victim.Start()).To(Succeed())
	g.Expect(bufio.NewReader(out).ReadString('\n')).To(Equal("started\n"))

	folders, err := os.ReadDir(temporary)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(folders).To(HaveLen(1))
	groups := func() []string {
		name := folders[0].Name()
		v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
		v2, _ := filepath.Glob("/sys/fs/cgroup/" + name)
		return append(v1, v2...)
	}
	g.Expect(groups()).NotTo(BeEmpty())

	g.Expect(victim.Process.Kill()).To(Succeed())
	_ = victim.Wait()
	g.Eventually(groups).Should(BeEmpty())
	g.Eventually(func() ([]os.DirEntry, error) { return os.ReadDir(temporary) }).Should(BeEmpty())
}
