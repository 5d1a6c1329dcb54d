package client_test

import (
	"path/filepath"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/directory/fstest"
	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/provisioner/nfs/client/nfsfs"
	"github.com/berth-storage/berth/test/lib/knfsd"
	"github.com/berth-storage/berth/test/uml"
)

// TestConformsOnLinux runs the conformance tests on the NFS server of the Linux
// kernel, which most NFS servers are.
func TestConformsOnLinux(t *testing.T) {
	m := uml.New(t, uml.Disk{Name: "disk", Make: []string{"mkfs.ext4", "-q"}})
	m.Run(t, "nfsd", func(t *testing.T) {
		s := knfsd.Start(t, m, "disk")
		for _, version := range versions {
			t.Run(string(version), func(t *testing.T) {
				fstest.Run(t, func(t *testing.T) (directory.Filesystem, string) {
					name := s.Export(t)
					return nfsfs.New(dialLinux(t, s, version, name)), filepath.Join(s.Base, name)
				})
			})
		}
	})
}

func dialLinux(t *testing.T, s *knfsd.Server, version client.Version, name string) *client.Client {
	t.Helper()
	pool := client.NewPool(client.PoolOptions{})
	share := "/" + name // below the root of version 4, which is the base
	if version == client.Version3 {
		share = filepath.Join(s.Base, name)
	}
	c, err := client.Dial(t.Context(), client.Options{
		Server: "127.0.0.1", Port: knfsd.Port, MountPort: s.MountPort, Share: share, Version: version, Pool: pool,
	})
	must(t, err)
	t.Cleanup(func() { _ = c.Close(); pool.Close() })
	return c
}
