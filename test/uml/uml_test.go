package uml_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-storage/berth/test/uml"
)

// TestPowerFailureLosesWhatIsNotDurable is what makes tests after one worth
// something.
func TestPowerFailureLosesWhatIsNotDurable(t *testing.T) {
	m := uml.New(t, uml.Disk{Name: "disk", Make: []string{"mkfs.ext4", "-q"}, Size: 64 << 20})
	m.RunUntilPowerFails(t, "before", func(t *testing.T) {
		dir := m.Mount(t, "disk", "ext4", "")
		write(t, filepath.Join(dir, "durable"), true)
		write(t, filepath.Join(dir, "hasty"), false)
	})
	m.Run(t, "after", func(t *testing.T) {
		dir := m.Mount(t, "disk", "ext4", "")
		if data, err := os.ReadFile(filepath.Join(dir, "durable")); err != nil || string(data) != "data" {
			t.Errorf("what was durable: %q, %v", data, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "hasty")); err == nil && len(data) > 0 {
			t.Errorf("what was not durable survived: %q", data)
		}
	})
}

func write(t *testing.T, path string, durable bool) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("data"); err != nil {
		t.Fatal(err)
	}
	if durable {
		if err := unix.Fsync(int(file.Fd())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMachineSeesNothingOfTheHost keeps a test that runs amok in its machine.
func TestMachineSeesNothingOfTheHost(t *testing.T) {
	m := uml.New(t)
	m.Run(t, "inside", func(t *testing.T) {
		entries, err := os.ReadDir("/")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			switch e.Name() {
			case "proc", "sys", "dev", "tmp", "mnt", "modules", "test", "job.json", "output":
			default:
				t.Errorf("/%s", e.Name())
			}
		}
		if err := os.WriteFile("/modules/x", nil, 0o600); err == nil {
			t.Error("the kernel's modules can be changed")
		}
		if os.Getpid() == 1 || os.Geteuid() != 0 {
			t.Errorf("process %d of user %d", os.Getpid(), os.Geteuid())
		}
	})
}
