package nfs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Share is a directory that a server exports, or one below it, and how to reach
// it. Its zero ports and its empty version mean whatever the protocol finds.
type Share struct {
	// Server is a host name or an IP address.
	Server string
	// Path is absolute and clean, as a client names it when it mounts the
	// share: with version 4 it begins at the server's pseudo root.
	Path string
	// Version is one of the values of the parameter nfsVersion but versionAuto,
	// or versionAny4.
	Version string
	// Port is where the server speaks NFS, MountPort where its mountd listens
	// (version 3).
	Port, MountPort uint16
}

// The values of the parameter nfsVersion.
const (
	versionAuto = "auto"
	version3    = "3"
	version40   = "4.0"
	version41   = "4.1"
	// versionAny4 is what mount options ask for that say "version 4".
	versionAny4 = "4"
)

// String names the share as mount(8) does.
func (s Share) String() string {
	if strings.Contains(s.Server, ":") {
		return "[" + s.Server + "]:" + s.Path
	}
	return s.Server + ":" + s.Path
}

// address is the server's, for messages and for one gate per server.
func (s Share) address() string {
	port := s.Port
	if port == 0 {
		port = 2049
	}
	return net.JoinHostPort(s.Server, fmt.Sprint(port))
}

// join is the path of the directory rel of the share, as pods mount it.
func (s Share) join(rel string) string { return path.Join(s.Path, rel) }

// below returns where other lies in s, "" when it is s, and false when it does
// not lie there.
func (s Share) below(other Share) (rel string, ok bool) {
	if s.address() != other.address() {
		return "", false
	}
	if s.Path == other.Path {
		return "", true
	}
	return strings.CutPrefix(other.Path, strings.TrimSuffix(s.Path, "/")+"/")
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?$`)

// checkServer says whether server can be a host.
func checkServer(server string) error {
	const fix = "write a host name or an IP address, such as nas.example.com or 10.0.0.5"
	switch {
	case server == "":
		return errors.New("is empty: " + fix)
	case strings.ContainsAny(server, "[]"):
		return errors.New("write an IPv6 address without brackets, and a port as the parameter port")
	case strings.Contains(server, ":"):
		if address, err := netip.ParseAddr(server); err != nil || address.Zone() != "" {
			return errors.New("is no IPv6 address; " + fix + ", and a port as the parameter port")
		}
	case len(server) > 253 || !hostName.MatchString(server):
		return errors.New(fix)
	}
	return nil
}

const (
	maxSharePath = 1024
	maxName      = 255
)

// checkSharePath says whether share can be what a server exports. Nothing is
// cleaned away first.
func checkSharePath(share string) error {
	switch {
	case !strings.HasPrefix(share, "/"):
		return errors.New("write an absolute path, such as /export")
	case len(share) > maxSharePath:
		return fmt.Errorf("is %d bytes long, at most %d are allowed", len(share), maxSharePath)
	case path.Clean(share) != share:
		return fmt.Errorf("write it without \"..\", \".\", double slashes and a slash at the end: %s", path.Clean(share))
	case !utf8.ValidString(share) || strings.ContainsFunc(share, unicode.IsControl):
		return errors.New("holds a control character or is not UTF-8")
	}
	for component := range strings.SplitSeq(share, "/") {
		if len(component) > maxName || strings.EqualFold(component, ".berth") {
			return fmt.Errorf("the component %.64q is longer than %d bytes or reserved for Berth", component, maxName)
		}
	}
	return nil
}

// ParseMount reads the value of the flag --nfs-mount: server:/share=/path. An
// IPv6 address stands in brackets.
func ParseMount(s string) (share Share, directory string, err error) {
	const form = "write server:/share=/directory"
	at := strings.Index(s, ":/")
	if at < 0 {
		return Share{}, "", errors.New(form)
	}
	server, rest := s[:at], s[at+1:]
	if inner, ok := strings.CutPrefix(server, "["); ok {
		server = strings.TrimSuffix(inner, "]")
	}
	exported, directory, ok := strings.Cut(rest, "=")
	if !ok {
		return Share{}, "", errors.New(form)
	}
	if err := checkServer(server); err != nil {
		return Share{}, "", fmt.Errorf("server %q: %w", server, err)
	}
	if err := checkSharePath(exported); err != nil {
		return Share{}, "", fmt.Errorf("share %q: %w", exported, err)
	}
	return Share{Server: server, Path: exported}, directory, nil
}

// within reports whether the relative path is dir or lies below it.
func within(path, dir string) bool { return strings.HasPrefix(path+"/", dir+"/") }
