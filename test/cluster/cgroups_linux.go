package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupFolders returns the root of each hierarchy of control groups: one with
// version 2, one for each controller with version 1.
func cgroupFolders() ([]string, error) {
	if unified() {
		return []string{cgroupMount}, nil
	}
	entries, err := filepath.Glob(filepath.Join(cgroupMount, "*"))
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, dir := range entries {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.CGROUP_SUPER_MAGIC && !isLink(dir) {
			roots = append(roots, dir)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("no control groups are mounted on %s", cgroupMount)
	}
	return roots, nil
}

// unified reports whether control groups are of version 2.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers"))
	return err == nil
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSymlink != 0
}

// makeCgroup makes the group of that path, such as "cluster/node", in every
// hierarchy, able to hold what a kubelet makes below it.
func makeCgroup(path string) error {
	roots, err := cgroupFolders()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for _, element := range strings.Split(path, "/") {
			parent := dir
			dir = filepath.Join(dir, element)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { //nolint:gosec // the mode the kernel gives to all groups
				return err
			}
			if err := inherit(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit gives a new group what it does not have from its parent by itself: the
// CPUs and memory of version 1, the controllers of version 2.
func inherit(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name)) //nolint:gosec // a file of the kernel's
		if errors.Is(err, os.ErrNotExist) || unified() {
			break
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o600); err != nil { //nolint:gosec // a file of the kernel's
			return err
		}
	}
	if !unified() {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers")) //nolint:gosec // a file of the kernel's
	if err != nil {
		return err
	}
	var enable []string
	for _, name := range bytes.Fields(controllers) {
		enable = append(enable, "+"+string(name))
	}
	return os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0o600) //nolint:gosec // a file of the kernel's
}

// removeCgroup removes the group of that path from every hierarchy, with all
// groups below it, once their last processes are gone.
func removeCgroup(path string) error {
	roots, err := cgroupFolders()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := removeGroup(filepath.Join(root, path)); err != nil {
			return err
		}
	}
	return nil
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	for tries := 0; errors.Is(err, unix.EBUSY) && tries < 100; tries++ {
		time.Sleep(20 * time.Millisecond)
		err = unix.Rmdir(dir)
	}
	if err != nil {
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
	return nil
}
