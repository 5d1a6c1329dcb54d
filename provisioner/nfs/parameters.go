package nfs

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/request"
)

// parameters are a StorageClass's, parsed.
type parameters struct {
	request.Directory
	share Share
	// mountOptions are the class's, and what pods need besides to mount what
	// the driver made: its version and its ports.
	mountOptions []string
}

var defaults = request.DirectoryDefaults(map[string]string{
	"server":     "",
	"share":      "",
	"nfsVersion": versionAuto,
	"port":       "",
	"mountPort":  "",
})

// parseParameters reads the parameters of class. Its errors are infeasible.
func parseParameters(class *storagev1.StorageClass) (parameters, error) {
	read := request.ReadParameters(class, defaults)
	p := parameters{
		share: Share{
			Server:    required(read, "server", checkServer),
			Path:      required(read, "share", checkSharePath),
			Version:   read.OneOf("nfsVersion", versionAuto, version41, version40, version3),
			Port:      port(read, "port"),
			MountPort: port(read, "mountPort"),
		},
		Directory: read.Directory(),
	}
	if err := read.Err(); err != nil {
		return parameters{}, err
	}
	if p.share.Version == versionAuto {
		p.share.Version = ""
	}
	return p, p.reconcile(class.MountOptions)
}

func required(read *request.Parameters, name string, check func(string) error) string {
	value := read.Value(name)
	if !read.Given(name) {
		read.Fail(name, "is missing, and this driver can't do without")
	} else if err := check(value); err != nil {
		read.Fail(name, "%v", err)
	}
	return value
}

func port(read *request.Parameters, name string) uint16 {
	if !read.Given(name) {
		return 0
	}
	n := read.Number(name, 10, math.MaxUint16, "write a port number from 1 to 65535")
	if n == 0 {
		read.Fail(name, "write a port number from 1 to 65535")
	}
	return uint16(n) //nolint:gosec // at most 65535, or read has an error
}

// mountWishes are the mount options that say how a server is reached, which the
// driver and kubelet must agree on: version 3 and version 4 may know a share
// under different paths.
type mountWishes struct {
	version, port, mountPort string
}

// readMountOptions finds the wishes. An option may hold several, separated by
// commas, as mount(8) takes them; the last one counts.
func readMountOptions(options []string) mountWishes {
	var w mountWishes
	for option := range strings.SplitSeq(strings.Join(options, ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(option), "=")
		switch name {
		case "vers", "nfsvers":
			w.version = value
		case "v3", "v4", "v4.0", "v4.1", "v4.2":
			w.version = name[1:]
		case "minorversion":
			w.version = "4." + value
		case "port":
			w.port = value
		case "mountport":
			w.mountPort = value
		}
	}
	return w
}

const mountOptionsField = "StorageClass field mountOptions"

// reconcile makes the share and the mount options agree.
func (p *parameters) reconcile(options []string) error {
	wishes := readMountOptions(options)
	p.mountOptions = append([]string{}, options...)
	if err := p.reconcileVersion(wishes.version); err != nil {
		return err
	}
	if err := p.reconcilePort("port", wishes.port, &p.share.Port); err != nil {
		return err
	}
	return p.reconcilePort("mountport", wishes.mountPort, &p.share.MountPort)
}

func (p *parameters) reconcileVersion(wish string) error {
	asked := p.share.Version
	if wish == "" {
		if asked != "" {
			p.mountOptions = append(p.mountOptions, "nfsvers="+asked)
		}
		return nil
	}
	major, _, _ := strings.Cut(wish, ".")
	switch {
	case major != "3" && major != "4":
		return provisioner.Infeasible(mountOptionsField, "nfsvers="+wish, "this driver speaks versions 3 and 4")
	case asked != "" && !strings.HasPrefix(asked, major):
		return provisioner.Infeasible("StorageClass parameter nfsVersion", asked,
			"mountOptions ask for version %s, in which the share may have another path: make them agree, or leave nfsVersion out", wish)
	case asked != "":
	case major == "3":
		p.share.Version = version3
	case wish == version40:
		p.share.Version = version40
	default:
		p.share.Version = versionAny4
	}
	return nil
}

func (p *parameters) reconcilePort(name, wish string, port *uint16) error {
	switch {
	case wish == "" && *port == 0:
	case wish == "":
		p.mountOptions = append(p.mountOptions, fmt.Sprintf("%s=%d", name, *port))
	case *port == 0:
		n, err := strconv.ParseUint(wish, 10, 16)
		if err != nil || n == 0 {
			return provisioner.Infeasible(mountOptionsField, name+"="+wish, "write a port number from 1 to 65535")
		}
		*port = uint16(n)
	case wish != fmt.Sprint(*port):
		return provisioner.Infeasible(mountOptionsField, name+"="+wish, "the parameter for the same port says %d: make them agree, or leave one out", *port)
	}
	return nil
}
