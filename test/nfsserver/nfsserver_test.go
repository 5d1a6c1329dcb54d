package nfsserver_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/test/nfsserver"
)

func dial(t *testing.T, s *nfsserver.Server, share string, version client.Version) *client.Dir {
	t.Helper()
	pool := client.NewPool(client.PoolOptions{AnswerTimeout: time.Second})
	c, err := client.Dial(t.Context(), client.Options{
		Server: nfsserver.Address, Port: s.Port, MountPort: s.MountPort, Share: share, Version: version, Pool: pool,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); pool.Close() })
	root, err := c.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestTwoServersServeAllVersions(t *testing.T) {
	for range 2 {
		path := t.TempDir()
		s := nfsserver.ForTest(t, nfsserver.Export{Path: path, Pseudo: "/export"})
		for version, share := range map[client.Version]string{client.Version3: path, client.Version40: "/export", client.Version41: "/export"} {
			name := "by-" + string(version)
			if err := dial(t, s, share, version).Mkdir(t.Context(), name, 0o755); err != nil {
				t.Errorf("version %s: %v", version, err)
			}
			if _, err := os.Stat(filepath.Join(path, name)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestPausedServerIsSilentUntilItIsResumed(t *testing.T) {
	s := nfsserver.ForTest(t, nfsserver.Export{Path: t.TempDir(), Pseudo: "/export"})
	root := dial(t, s, "/export", client.Version41)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Stat(t.Context()); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("Stat = %v, want ErrUnreachable", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitStat(t, root)
}

func TestKilledServerComesBack(t *testing.T) {
	path := t.TempDir()
	s := nfsserver.ForTest(t, nfsserver.Export{Path: path, Pseudo: "/export"})
	root := dial(t, s, "/export", client.Version40)
	s.Kill()
	if _, err := root.Stat(t.Context()); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("Stat = %v, want ErrUnreachable", err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitStat(t, root)
}

func awaitStat(t *testing.T, root *client.Dir) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := root.Stat(t.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
