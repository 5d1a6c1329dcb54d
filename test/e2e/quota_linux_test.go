package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

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

func TestPodThatHitsItsQuotaLeavesItsNeighbourAlone(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	if noQuota != "" {
		t.Skip(noQuota + ` ("go test ./test/uml" tests quotas in a kernel of its own)`)
	}
	r.claim("greedy", "quota", "8Mi")
	r.claim("neighbour", "quota", "8Mi")
	r.run(on("node1", newPod("greedy", "dd if=/dev/zero of=/data/file bs=1M count=16", ofClaim("greedy"))), corev1.PodFailed)
	r.Expect(r.kubectl("logs", "greedy")).To(Or(ContainSubstring("No space left on device"), ContainSubstring("Disk quota exceeded")))
	r.run(on("node1", newPod("neighbour", "dd if=/dev/zero of=/data/file bs=1M count=7", ofClaim("neighbour"))), corev1.PodSucceeded)
}
