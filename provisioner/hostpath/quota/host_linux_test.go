package quota_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/quota"
)

// TestThisMachineAnswers says what this machine's own kernel and filesystem
// can; it is a clear yes or a clear no.
func TestThisMachineAnswers(t *testing.T) {
	err := check(t.TempDir())
	var unsupported *directory.QuotaUnsupportedError
	if err != nil && !errors.As(err, &unsupported) {
		t.Fatalf("check = %v", err)
	}
	t.Logf("limits here: %v", err)
	if err == nil {
		return
	}
	pool := poolAt(t, t.TempDir(), quota.New(quota.DefaultRange))
	spec := volume("a", 4)
	spec.UID, spec.GID = nil, nil
	spec.Quota = directory.QuotaAuto
	m, err := pool.Create(t.Context(), spec)
	must(t, err)
	if m.QuotaState() != "none: "+unsupported.Reason {
		t.Errorf("state = %s", m.QuotaState())
	}
}

func TestOtherFilesystemsAreNamed(t *testing.T) {
	var st unix.Statfs_t
	const shm = "/dev/shm"
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is not a tmpfs")
	}
	base, err := os.MkdirTemp(shm, "berth-test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := check(base); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("check = %v", err)
	}
}

// notOfThisMachine is a directory of an NFS export, say.
type notOfThisMachine struct{ directory.Dir }

func TestOnlyThisMachinesDirectoriesCanBeLimited(t *testing.T) {
	err := quota.New(quota.DefaultRange).Check(t.Context(), notOfThisMachine{})
	var unsupported *directory.QuotaUnsupportedError
	if !errors.As(err, &unsupported) {
		t.Errorf("Check = %v", err)
	}
}
