package client_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/directory/fstest"
	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/provisioner/nfs/client/nfsfs"
)

var versions = []client.Version{client.Version3, client.Version40, client.Version41}

// eachVersion runs a test over every version, each with its own server.
func eachVersion(t *testing.T, test func(t *testing.T, s *server, version client.Version)) {
	t.Helper()
	for _, version := range versions {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			test(t, newServer(t), version)
		})
	}
}

func TestConforms(t *testing.T) {
	t.Parallel()
	for _, version := range versions {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			fstest.Run(t, func(t *testing.T) (directory.Filesystem, string) {
				s := newServer(t)
				return nfsfs.New(s.dial(version)), s.base
			})
		})
	}
}

func TestRemoveAllNeverLeavesTheTree(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		must(t, os.MkdirAll(filepath.Join(s.base, "precious/data"), 0o755))
		must(t, os.MkdirAll(filepath.Join(s.base, "tree/a/b/c"), 0o755))
		for i := range 300 {
			must(t, os.WriteFile(filepath.Join(s.base, fmt.Sprintf("tree/a/b/%d", i)), nil, 0o644))
		}
		must(t, os.Symlink("../../precious", filepath.Join(s.base, "tree/a/link")))
		must(t, os.Symlink(filepath.Join(s.base, "precious"), filepath.Join(s.base, "tree/absolute")))
		must(t, os.Symlink(".", filepath.Join(s.base, "tree/loop")))
		root := rootOf(t, s.dial(version))
		must(t, root.RemoveAll(t.Context(), "tree"))
		must(t, root.RemoveAll(t.Context(), "tree"))
		wantNames(t, s.base, "precious")
		wantNames(t, filepath.Join(s.base, "precious"), "data")
	})
}

// A tenant names files as it likes, and its volume must go all the same.
func TestNamesMayHoldAnyBytes(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		names := []string{"caf\u00e9", "\xff\xfe", "new\nline", strings.Repeat("x", 255), strings.Repeat("\u20ac", 85)}
		for _, name := range names {
			must(t, os.MkdirAll(filepath.Join(s.base, "tree", name, name), 0o755))
			must(t, os.WriteFile(filepath.Join(s.base, "tree", name, "f"+name[1:]), nil, 0o644))
		}
		root := rootOf(t, s.dial(version))
		tree, err := root.Open(t.Context(), "tree")
		must(t, err)
		var got []string
		for e, err := range tree.ReadDir(t.Context()) {
			must(t, err)
			got = append(got, e.Name)
		}
		slices.Sort(got)
		slices.Sort(names)
		if diff := cmp.Diff(names, got); diff != "" {
			t.Error(diff)
		}
		for i, name := range names {
			must(t, tree.Rename(t.Context(), name, root, name))
			must(t, root.Rename(t.Context(), name, tree, fmt.Sprintf("%d%s", i, name[:2])))
		}
		must(t, root.RemoveAll(t.Context(), "tree"))
		wantNames(t, s.base)
	})
}

func TestNamesThatAServerMakesUpAreRefused(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		s.lie = "../" + filepath.Base(s.base)
		root := rootOf(t, s.dial(version))
		if err := root.RemoveAll(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		for e, err := range root.ReadDir(t.Context()) {
			if err == nil {
				t.Errorf("ReadDir yields %q", e.Name)
			}
		}
	})
}

func TestDirectoriesWithoutAnEndAreRefused(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		for i := range 3 {
			must(t, os.Mkdir(filepath.Join(s.base, fmt.Sprint(i)), 0o755))
		}
		s.endless = true
		root := rootOf(t, s.dial(version))
		seen := 0
		var failed error
		for _, err := range root.ReadDir(t.Context()) {
			seen++
			failed = errors.Join(failed, err)
		}
		if failed == nil || !strings.Contains(failed.Error(), "no end") || seen > 10 {
			t.Errorf("ReadDir yields %d entries and %v", seen, failed)
		}
	})
}

// A server that mixes up its handles does not make us empty what surrounds the
// directory that we mean.
func TestDirectoryThatIsSaidToHoldItselfIsNotEntered(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		must(t, os.MkdirAll(filepath.Join(s.base, "trash", "volume", "data"), 0o755))
		must(t, os.Mkdir(filepath.Join(s.base, "precious"), 0o755))
		s.misdirected = "volume"
		trash, err := rootOf(t, s.dial(version)).Open(t.Context(), "trash")
		must(t, err)
		if err := trash.RemoveAll(t.Context(), "volume"); err == nil || !strings.Contains(err.Error(), "lies in itself") {
			t.Errorf("RemoveAll = %v", err)
		}
		wantNames(t, s.base, "precious", "trash")
		wantNames(t, filepath.Join(s.base, "trash", "volume"), "data")
	})
}

func TestDeepTreesAreRemoved(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	must(t, os.Mkdir(filepath.Join(s.base, "d"), 0o755))
	root := rootOf(t, s.dial(client.Version41))
	dir := root
	for range 100 {
		must(t, dir.Mkdir(t.Context(), "d2", 0o755))
		var err error
		dir, err = dir.Open(t.Context(), "d2")
		must(t, err)
	}
	must(t, root.RemoveAll(t.Context(), "d2"))
	wantNames(t, s.base, "d")
}

func TestMkdirDropsSetgidAndSetAttrSetsIt(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		must(t, root.Mkdir(t.Context(), "d", 0o2770))
		d, err := root.Open(t.Context(), "d")
		must(t, err)
		must(t, d.SetAttr(t.Context(), client.SetAttr{Mode: new(uint32(0o2770))}))
		info, err := root.Lstat(t.Context(), "d")
		must(t, err)
		if info.Mode != 0o2770 {
			t.Errorf("mode = %#o", info.Mode)
		}
	})
}

func TestHandlesGoStaleAndTheRootRecovers(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		c := s.dial(version)
		root := rootOf(t, c)
		s.forgetHandles()
		if err := root.Mkdir(t.Context(), "d", 0o755); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("Mkdir = %v, want ESTALE", err)
		}
		must(t, rootOf(t, c).Mkdir(t.Context(), "d", 0o755))
	})
}

// A local filesystem says so of a directory that was removed. A name in it is
// not missing, though: it is unknown.
func TestOnlyMkdirTakesAStaleHandleForAMissingDirectory(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root, err := nfsfs.New(s.dial(version)).Root(t.Context())
		must(t, err)
		s.forgetHandles()
		if err := root.Mkdir(t.Context(), "d", 0o755); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Mkdir = %v", err)
		}
		if _, err := root.Lstat(t.Context(), "d"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat = %v", err)
		}
		if _, err := root.ReadFile(t.Context(), "d", 1); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadFile = %v", err)
		}
	})
}

func TestStatusesAreErrnos(t *testing.T) {
	t.Parallel()
	for status, want := range map[uint32]error{
		1: syscall.EPERM, 2: fs.ErrNotExist, 13: fs.ErrPermission, 17: fs.ErrExist, 20: syscall.ENOTDIR, 28: syscall.ENOSPC, 30: syscall.EROFS,
		63: syscall.ENAMETOOLONG, 66: syscall.ENOTEMPTY, 69: syscall.EDQUOT, 70: syscall.ESTALE, 10001: syscall.ESTALE, 10004: syscall.EOPNOTSUPP,
		10006: syscall.EIO, 77777: syscall.EIO,
	} {
		s := newServer(t)
		s.answerFirst("mkdir", 1, status)
		err := rootOf(t, s.dial(client.Version3)).Mkdir(t.Context(), "d", 0o755)
		if !errors.Is(err, want) {
			t.Errorf("status %d: %v, want %v", status, err, want)
		}
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.secure = true
	_, err := client.Dial(t.Context(), s.options(client.Version3))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "insecure") {
		t.Errorf("mount = %v", err)
	}
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		s.answerFirst("mkdir", 1, 13)
		err := root.Mkdir(t.Context(), "d", 0o755)
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "root_squash") {
			t.Errorf("mkdir = %v", err)
		}
		options := s.options(version)
		options.Share = "/missing"
		if _, err := client.Dial(t.Context(), options); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Dial = %v", err)
		}
	})
}

func TestAutoTakesTheBestVersion(t *testing.T) {
	t.Parallel()
	for minor, want := range map[int]client.Version{1: client.Version41, 0: client.Version40, -1: client.Version3} {
		s := newServer(t)
		s.minor = minor
		if got := s.dial(client.VersionAuto).Version(); got != want {
			t.Errorf("a server of minor version %d: %s, want %s", minor, got, want)
		}
	}
}

// A server may name an export differently in version 3.
func TestAutoLooksForTheShareInVersion3(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answerFirst("lookup", 2, 2)
	if got := s.dial(client.VersionAuto).Version(); got != client.Version3 {
		t.Errorf("version %s", got)
	}
	options := s.options(client.VersionAuto)
	options.Share = "/missing"
	if _, err := client.Dial(t.Context(), options); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "insecure") {
		t.Errorf("Dial = %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*client.Options){
		"no server":        func(o *client.Options) { o.Server = "" },
		"relative share":   func(o *client.Options) { o.Share = "export" },
		"share with ..":    func(o *client.Options) { o.Share = "/export/../etc" },
		"unknown version":  func(o *client.Options) { o.Version = "2" },
		"too many groups":  func(o *client.Options) { o.Groups = make([]uint32, 17) },
		"share with a NUL": func(o *client.Options) { o.Share = "/a\x00" },
	} {
		options := client.Options{Server: "127.0.0.1", Port: 1, MountPort: 1, Share: "/export", Version: client.Version3}
		change(&options)
		if _, err := client.Dial(t.Context(), options); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNobodyListening(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	must(t, listener.Close())
	for _, version := range versions {
		begun := time.Now()
		_, err := client.Dial(t.Context(), client.Options{Server: "127.0.0.1", Port: uint16(port), MountPort: uint16(port), Share: "/export", Version: version})
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begun) > 3*time.Second {
			t.Errorf("version %s: %v after %v", version, err, time.Since(begun))
		}
	}
}

func TestCallsShareAConnection(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		var group sync.WaitGroup
		for i := range 32 {
			group.Go(func() {
				name := fmt.Sprint(i)
				for range 10 {
					if err := errors.Join(root.Mkdir(t.Context(), name, 0o755), root.Rmdir(t.Context(), name)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if n := s.dials(); n > 1 {
			t.Errorf("%d connections", n)
		}
	})
}

func TestLargeFile(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, s *server, version client.Version) {
		root := rootOf(t, s.dial(version))
		content := []byte(strings.Repeat("0123456789", 20_000))
		must(t, root.WriteFile(t.Context(), "f", ".tmp-", content))
		got, err := root.ReadFile(t.Context(), "f", int64(len(content)))
		must(t, err)
		if string(got) != string(content) {
			t.Errorf("read %d bytes that differ", len(got))
		}
		wantNames(t, s.base, "f")
	})
}

func rootOf(t testing.TB, c *client.Client) *client.Dir {
	t.Helper()
	root, err := c.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", dir, diff)
	}
}

func TestReservedPortIsUsedIfItMayBe(t *testing.T) {
	t.Parallel()
	probe, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: 700})
	if err == nil {
		err = probe.Close()
	}
	allowed := !errors.Is(err, syscall.EACCES)
	for _, unprivileged := range []bool{false, true} {
		s := newServer(t)
		options := s.options(client.Version41)
		options.UnprivilegedPort = unprivileged
		rootOf(t, s.dialWith(options, client.PoolOptions{}))
		for _, port := range s.sourcePorts {
			if reserved := port < 1024; reserved != (allowed && !unprivileged) {
				t.Errorf("source port %d, unprivileged %t, allowed %t", port, unprivileged, allowed)
			}
		}
	}
}
