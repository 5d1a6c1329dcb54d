package request

import (
	"errors"
	"fmt"
	"time"
)

// ErrNamed says that a directory that was to be adopted is another volume's.
var ErrNamed = errors.New("directory is another volume's")

// NamedRetry is how long a claim waits for a directory that is another volume's.
const NamedRetry = 15 * time.Second

// RefuseNamed refuses to adopt path, which the PersistentVolume called volume names.
func RefuseNamed(path, volume string) error {
	return fmt.Errorf("%w: StorageClass parameter existing: \"adopt\": PersistentVolume %s names %s, or a directory above or inside it; "+
		"choose another directory, or give that volume the reclaim policy Retain and delete its claim first", ErrNamed, volume, path)
}
