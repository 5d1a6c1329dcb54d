package controllers

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// namesPage is how many volumes are listed at a time.
const namesPage = 500

// namedPaths finds volumes by the directories that they name to pods: any volumes,
// of any node, made by anybody. It asks the API server, since the cache does not
// hold what volumes of others name.
type namedPaths struct {
	reader client.Reader
	clock  clock.PassiveClock
	// fresh is for how long a list serves all who are about to discard something, from
	// when all of it was there: a list that takes longer would serve nobody else.
	fresh time.Duration

	mu     sync.Mutex
	listed time.Time
	paths  map[string][]string // the names of volumes by their path
}

// by returns the name of a volume other than except that names directory, or one in
// it; "" when there is none.
func (n *namedPaths) by(ctx context.Context, directory, except string) (string, error) {
	if directory == "" {
		return "", nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paths == nil || n.clock.Since(n.listed) > n.fresh {
		if err := n.listLocked(ctx); err != nil {
			return "", err
		}
	}
	directory = path.Clean(directory)
	for other, volumes := range n.paths {
		if other != directory && !strings.HasPrefix(other, directory+"/") {
			continue
		}
		for _, volume := range volumes {
			if volume != except {
				return volume, nil
			}
		}
	}
	return "", nil
}

func (n *namedPaths) listLocked(ctx context.Context) error {
	paths := map[string][]string{}
	for next := ""; ; {
		list := &corev1.PersistentVolumeList{}
		if err := n.reader.List(ctx, list, client.Limit(namesPage), client.Continue(next)); err != nil {
			return fmt.Errorf("list the volumes that may name storage: %w", err)
		}
		for i := range list.Items {
			if named := pathOf(&list.Items[i]); named != "" {
				named = path.Clean(named)
				paths[named] = append(paths[named], list.Items[i].Name)
			}
		}
		if next = list.Continue; next == "" {
			n.paths, n.listed = paths, n.clock.Now()
			return nil
		}
	}
}
