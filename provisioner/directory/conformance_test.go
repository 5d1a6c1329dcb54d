package directory_test

import (
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/directory/fstest"
)

func TestLocalConforms(t *testing.T) {
	fstest.Run(t, func(t *testing.T) (directory.Filesystem, string) {
		base := t.TempDir()
		local, err := directory.NewLocal(base, directory.LocalOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return local, base
	})
}
