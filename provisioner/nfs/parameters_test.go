package nfs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-storage/berth/provisioner"
)

func classWith(mountOptions []string, parameters ...string) *storagev1.StorageClass {
	class := &storagev1.StorageClass{
		MountOptions: mountOptions,
		Parameters:   map[string]string{"server": "nas", "share": "/export"},
	}
	for i := 0; i < len(parameters); i += 2 {
		class.Parameters[parameters[i]] = parameters[i+1]
	}
	return class
}

func TestBadParametersNameFieldValueAndFix(t *testing.T) {
	for _, test := range []struct {
		name, value string
		fix         string
	}{
		{"Server", "nas", "no such parameter; known are existing, gid, mode, mountPort, nfsVersion, onDelete, pathPattern, port, server, share, uid"},
		{"server", "", "is empty"},
		{"server", "nas:2049", "port as the parameter port"},
		{"server", "[fd00::1]", "without brackets"},
		{"server", "fe80::1%eth0", "is no IPv6 address"},
		{"server", "nas/export", "write a host name"},
		{"server", "nas\nroot", "write a host name"},
		{"server", "-nas", "write a host name"},
		{"server", strings.Repeat("a", 254), "write a host name"},
		{"share", "", "absolute path"},
		{"share", "export", "absolute path"},
		{"share", "/export/", `without "..", ".", double slashes and a slash at the end: /export`},
		{"share", "/export/../etc", "/etc"},
		{"share", "/..", "/"},
		{"share", "//export", "/export"},
		{"share", "/export/./a", "/export/a"},
		{"share", "/ex\x00port", "control character"},
		{"share", "/ex\xffport", "not UTF-8"},
		{"share", "/export/.berth", "reserved for Berth"},
		{"share", "/" + strings.Repeat("a", 256), "longer than 255 bytes"},
		{"share", "/" + strings.Repeat("a/", 600), "at most 1024"},
		{"nfsVersion", "4.2", "auto, 4.1, 4.0, 3"},
		{"nfsVersion", "4", "auto, 4.1, 4.0, 3"},
		{"nfsVersion", "", "auto, 4.1, 4.0, 3"},
		{"port", "0", "from 1 to 65535"},
		{"port", "65536", "from 1 to 65535"},
		{"port", "nfs", "from 1 to 65535"},
		{"port", "", "from 1 to 65535"},
		{"mountPort", "-1", "from 1 to 65535"},
		{"pathPattern", "../x", "not a name"},
		{"onDelete", "shred", "delete, archive, retain"},
		{"mode", "0888", "octal"},
		{"uid", "root", "4294967294"},
		{"uid", "", "4294967294"},
		{"gid", "-1", "4294967294"},
		{"existing", "yes", "refuse, adopt"},
	} {
		t.Run(test.name+"="+test.value[:min(len(test.value), 20)], func(t *testing.T) {
			_, err := parseParameters(classWith(nil, test.name, test.value))
			if !provisioner.IsInfeasible(err) {
				t.Fatalf("error = %v, want an infeasible one", err)
			}
			if len(err.Error()) > 600 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			for _, want := range []string{"StorageClass parameter " + test.name, test.fix} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
}

func TestServerAndShareAreRequired(t *testing.T) {
	for _, name := range []string{"server", "share"} {
		class := classWith(nil)
		delete(class.Parameters, name)
		_, err := parseParameters(class)
		if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), "StorageClass parameter "+name) || !strings.Contains(err.Error(), "is missing") {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestGoodServersAndShares(t *testing.T) {
	for _, server := range []string{"nas", "NAS_1.example.com", "10.0.0.5", "fd00::1", "nas.example.com."} {
		for _, share := range []string{"/", "/export", "/export/a b/ü"} {
			if _, err := parseParameters(classWith(nil, "server", server, "share", share)); err != nil {
				t.Error(err)
			}
		}
	}
}

// Pods must mount what the driver made: over the same ports, and in a version
// that knows the share under the same path.
func TestPodsAndDriverReachTheServerAlike(t *testing.T) {
	for name, test := range map[string]struct {
		class   *storagev1.StorageClass
		share   Share
		options []string
	}{
		"nothing said": {classWith(nil), Share{}, []string{}},
		"auto":         {classWith([]string{"hard"}, "nfsVersion", "auto"), Share{}, []string{"hard"}},
		"version of the class": {
			classWith([]string{"hard"}, "nfsVersion", "3"),
			Share{Version: version3}, []string{"hard", "nfsvers=3"},
		},
		"version of the mount options": {
			classWith([]string{"nfsvers=3", "nolock"}),
			Share{Version: version3}, []string{"nfsvers=3", "nolock"},
		},
		"any version 4":        {classWith([]string{"vers=4"}), Share{Version: versionAny4}, []string{"vers=4"}},
		"version 4.2":          {classWith([]string{"v4.2"}), Share{Version: versionAny4}, []string{"v4.2"}},
		"version 4.0":          {classWith([]string{"nfsvers=4.0"}), Share{Version: version40}, []string{"nfsvers=4.0"}},
		"minor version":        {classWith([]string{"vers=4,minorversion=1"}), Share{Version: versionAny4}, []string{"vers=4,minorversion=1"}},
		"both, and they agree": {classWith([]string{"nfsvers=4.2"}, "nfsVersion", "4.1"), Share{Version: version41}, []string{"nfsvers=4.2"}},
		"ports of the class": {
			classWith(nil, "port", "20490", "mountPort", "20480"),
			Share{Port: 20490, MountPort: 20480}, []string{"port=20490", "mountport=20480"},
		},
		"ports of the mount options": {
			classWith([]string{"port=20490,mountport=20480"}),
			Share{Port: 20490, MountPort: 20480}, []string{"port=20490,mountport=20480"},
		},
		"port said twice": {classWith([]string{"port=20490"}, "port", "20490"), Share{Port: 20490}, []string{"port=20490"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseParameters(test.class)
			if err != nil {
				t.Fatal(err)
			}
			test.share.Server, test.share.Path = "nas", "/export"
			if diff := cmp.Diff(test.share, got.share); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.options, got.mountOptions); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMountOptionsThatContradictTheClassAreInfeasible(t *testing.T) {
	for name, class := range map[string]*storagev1.StorageClass{
		"version":         classWith([]string{"nfsvers=3"}, "nfsVersion", "4.1"),
		"other version":   classWith([]string{"nfsvers=4.2"}, "nfsVersion", "3"),
		"unknown version": classWith([]string{"nfsvers=2"}),
		"port":            classWith([]string{"port=2050"}, "port", "2049"),
		"mount port":      classWith([]string{"mountport=1"}, "mountPort", "2"),
		"bad port":        classWith([]string{"port=nfs"}),
	} {
		if _, err := parseParameters(class); !provisioner.IsInfeasible(err) {
			t.Errorf("%s: error = %v, want an infeasible one", name, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	for value, want := range map[string]struct {
		share Share
		path  string
	}{
		"nas:/export=/mnt/nas":       {Share{Server: "nas", Path: "/export"}, "/mnt/nas"},
		"[fd00::1]:/export=/mnt/nas": {Share{Server: "fd00::1", Path: "/export"}, "/mnt/nas"},
		"nas:/=/mnt/nas":             {Share{Server: "nas", Path: "/"}, "/mnt/nas"},
	} {
		share, path, err := ParseMount(value)
		if err != nil || share != want.share || path != want.path {
			t.Errorf("ParseMount(%q) = %v, %q, %v", value, share, path, err)
		}
	}
	for _, bad := range []string{"", "nas", "nas:export=/mnt", "nas:/export", ":/export=/mnt", "nas:/a/../b=/mnt"} {
		if share, path, err := ParseMount(bad); err == nil {
			t.Errorf("ParseMount(%q) = %v, %q", bad, share, path)
		}
	}
}
