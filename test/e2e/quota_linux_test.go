package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/test/cluster"
)

// noQuota is why the pool "quota" has no quotas, "" when it has.
var noQuota string

// mountQuota mounts the pool "quota" of a node: a filesystem with project quotas,
// where the kernel has them.
func mountQuota(ctx context.Context, node *cluster.Node) error {
	if err := os.MkdirAll(node.Path("/mnt/quota"), 0o750); err != nil {
		return err
	}
	const image = "/var/lib/quota.img"
	if _, err := os.Stat(node.Path(image)); os.IsNotExist(err) {
		mkfs := node.Command(ctx, "mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", image, "128m")
		if output, err := mkfs.CombinedOutput(); err != nil {
			noQuota = fmt.Sprintf("mkfs.ext4: %v: %s", err, strings.TrimSpace(string(output)))
			return nil
		}
	}
	mount := node.Command(ctx, "mount", "-o", "loop,prjquota", image, "/mnt/quota")
	if output, err := mount.CombinedOutput(); err != nil {
		reason, _, _ := strings.Cut(string(output), "\n")
		noQuota = "this kernel mounts no filesystem with project quotas: " + reason
	}
	return nil
}

// newQuotaRoom is newRoom for tests that need quotas.
func newQuotaRoom(t *testing.T) room {
	t.Helper()
	r := newRoom(t)
	if noQuota != "" {
		t.Skip(noQuota + ` ("go test ./provisioner/hostpath/quota" tests quotas in a kernel of its own)`)
	}
	return r
}

// writeOn is a command that writes until a write fails: 4 KiB at a time, so slowly
// that 8 MiB last for ten minutes.
const writeOn = "trap 'exit 0' TERM; while dd if=/dev/zero bs=4k count=1 >>/data/file; do sleep 0.3; done; exit 1"

// writeAll is a command that writes until nothing fits, over and over again.
const writeAll = "trap 'exit 0' TERM; while true; do dd if=/dev/zero bs=1M count=16 >>/data/file; sleep 0.3; done"

func TestPodThatHitsItsQuotaLeavesItsNeighbourAlone(t *testing.T) {
	t.Parallel()
	r := newQuotaRoom(t)
	r.claim("greedy", "quota", "8Mi")
	r.claim("neighbour", "quota", "8Mi")
	r.run(on("node1", newPod("neighbour", writeOn, ofClaim("neighbour"))), corev1.PodRunning)
	written := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(r.exec("neighbour", "cat /data/file 2>/dev/null | wc -c")))
		r.Expect(err).NotTo(HaveOccurred())
		return n
	}
	r.Eventually(written).Should(BeNumerically(">", 0))

	r.run(on("node1", newPod("greedy", writeAll, ofClaim("greedy"))), corev1.PodRunning)
	refused := func() int {
		log := r.kubectl("logs", "greedy")
		return strings.Count(log, "No space left on device") + strings.Count(log, "Disk quota exceeded")
	}
	r.Eventually(refused).Should(BeNumerically(">", 0))
	before, times := written(), refused()
	r.Eventually(written).Should(BeNumerically(">", before), "the neighbour writes on while the other is at its limit")
	r.Eventually(refused).Should(BeNumerically(">", times), "the other is at its limit still")

	r.deletePods("greedy")
	before = written()
	r.Eventually(written).Should(BeNumerically(">", before), "the neighbour writes on afterwards")
	r.Expect(r.phase("neighbour")()).To(Equal(corev1.PodRunning), "no write of the neighbour has failed")
}

func TestGrowthShowsInThePod(t *testing.T) {
	t.Parallel()
	r := newQuotaRoom(t)
	r.claim("data", "quota", "8Mi")
	r.run(newPod("user", wait, ofClaim("data")), corev1.PodRunning)
	kilobytes := func() string { return strings.TrimSpace(r.exec("user", "df -kP /data | awk 'NR==2 {print $2}'")) }
	r.Expect(kilobytes()).To(Equal("8192"))
	r.kubectl("patch", "pvc", "data", "--patch", `{"spec":{"resources":{"requests":{"storage":"12Mi"}}}}`)
	r.Eventually(func() string { return r.read("data").Status.Capacity.Storage().String() }).Should(Equal("12Mi"))
	r.Expect(kilobytes()).To(Equal("12288"))
	r.Expect(r.volumeOf("data").Annotations).To(HaveKeyWithValue(hostpath.AnnQuota, "enforced"))
	r.exec("user", "dd if=/dev/zero of=/data/file bs=1M count=11")
}
