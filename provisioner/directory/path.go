package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"unicode/utf8"
)

const (
	// maxName is NAME_MAX of every filesystem in use.
	maxName = 255
	// maxPath leaves room, within PATH_MAX of 4096, for the base in front and
	// for what kubelet and a workload put behind.
	maxPath = 3072
	// adminName is Berth's own directory in a base.
	adminName = ".berth"
)

// CheckPath says whether path, relative to a base, can be a volume's: components
// separated by single slashes, none of which is special. Nothing is cleaned
// away first.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("the path is %d bytes long, at most %d are allowed", len(path), maxPath)
	}
	for i, component := range strings.Split(path, "/") {
		if problem := componentProblem(component); problem != "" {
			return fmt.Errorf("component %d of the path, %s, %s", i+1, shown(component), problem)
		}
	}
	return nil
}

// componentProblem says why a component can't be used, or "".
func componentProblem(component string) string {
	switch {
	case component == "":
		return "is empty"
	case component == "." || component == "..":
		return "is not a name"
	case strings.EqualFold(component, adminName):
		return "is reserved for Berth"
	case len(component) > maxName:
		return fmt.Sprintf("is %d bytes long, at most %d are allowed", len(component), maxName)
	case !utf8.ValidString(component):
		return "is not valid UTF-8"
	case strings.ContainsFunc(component, isControl):
		return "holds a control character"
	}
	return ""
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// shown quotes the beginning of a name that may be of any length.
func shown(name string) string {
	const most = 64
	if len(name) <= most {
		return fmt.Sprintf("%q", name)
	}
	cut := most
	for cut > most-utf8.UTFMax && !utf8.RuneStart(name[cut]) {
		cut--
	}
	return fmt.Sprintf("%q…", name[:cut])
}

// checkName is the rule for a name that any Dir method is given.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return syscall.EINVAL
	}
	return nil
}

// ancestors yields the directories above path, the shallowest first.
func ancestors(path string) []string {
	var above []string
	for i := range len(path) {
		if path[i] == '/' {
			above = append(above, path[:i])
		}
	}
	return above
}

// splitPath returns the directory above path, "" for the base, and its last
// component.
func splitPath(path string) (parent, leaf string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// openPath opens the directory at path below root, one component at a time. The
// empty path is root itself. The caller closes what it gets.
func openPath(ctx context.Context, root Dir, path string) (Dir, error) {
	dir := sharedDir(root)
	if path == "" {
		return dir, nil
	}
	for component := range strings.SplitSeq(path, "/") {
		child, err := dir.Open(ctx, component)
		_ = dir.Close()
		if err != nil {
			return nil, err
		}
		dir = child
	}
	return dir, nil
}

// sharedDir is dir for somebody who closes it but does not own it.
func sharedDir(dir Dir) Dir { return unowned{dir} }

type unowned struct{ Dir }

func (unowned) Close() error { return nil }

// notDirectory reports whether err says that a name is, or became, something
// that Open refuses.
func notDirectory(err error) bool {
	return errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, ErrCrossesMount)
}

// notRegular reports whether err says that a name is no regular file.
func notRegular(err error) bool {
	return errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EINVAL)
}

func notEmpty(err error) bool { return errors.Is(err, syscall.ENOTEMPTY) }

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func exist(err error) bool { return errors.Is(err, fs.ErrExist) }
