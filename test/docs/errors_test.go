package docs

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/nfs"
)

// mistake is a claim whose class, or which itself, is wrong in the way that a row
// of a table of error texts describes.
type mistake struct {
	t      *testing.T
	pool   string // its directory
	driver interface {
		Provision(context.Context, controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error)
	}
	controller.ProvisionOptions
}

// mistakes are what a text does not tell by its parameter or its mount option, by
// cause.
var mistakes = map[string]func(*mistake){
	"a value that is ..": func(m *mistake) { m.PVC.Annotations["p"] = ".." },
	"a long value":       func(m *mistake) { m.PVC.Annotations["p"] = strings.Repeat("x", 300) },
	"path of another volume": func(m *mistake) {
		m.provisionOther("shared")
	},
	"inside another volume": func(m *mistake) {
		m.provisionOther("shared")
	},
	"directory exists": func(m *mistake) {
		m.provisionOther("first") // a directory that is empty becomes a pool
		m.ok(os.Mkdir(filepath.Join(m.pool, "old-data"), 0o750))
	},
	"a link in the way": func(m *mistake) {
		m.provisionOther("first")
		m.ok(os.Symlink(m.t.TempDir(), filepath.Join(m.pool, "link")))
	},
	"mountOptions with hostPath": func(m *mistake) { m.StorageClass.Parameters["volumeType"] = "hostPath" },
	"allowedTopologies": func(m *mistake) {
		m.StorageClass.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
			{Key: corev1.LabelHostname, Values: []string{"n2"}},
		}}}
	},
	"access mode": func(m *mistake) { m.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany} },
	"selector": func(m *mistake) {
		m.PVC.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	},
	"data source": func(m *mistake) {
		m.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "x"}
	},
	"a pattern that may not adopt": func(m *mistake) { m.StorageClass.Parameters["existing"] = "adopt" },
	"larger than the disk": func(m *mistake) {
		m.PVC.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("900Ti")}
	},
	"no server":                    func(m *mistake) { delete(m.StorageClass.Parameters, "server") },
	"no share":                     func(m *mistake) { delete(m.StorageClass.Parameters, "share") },
	"nfsVersion and mountOptions":  func(m *mistake) { m.StorageClass.MountOptions = []string{"nfsvers=4.1"} },
	"port and mountOptions differ": func(m *mistake) { m.StorageClass.Parameters["port"] = "2049" },
}

// untold are rows whose texts are tested elsewhere.
var untold = map[string]string{
	"block volume": "the controller says that before it asks a driver: test/stuck",
}

// TestErrorTextsAreThoseOfTheDrivers makes each mistake that the StorageClass
// reference has a text for, and compares the text with what the driver says.
func TestErrorTextsAreThoseOfTheDrivers(t *testing.T) {
	used := map[string]bool{}
	for _, c := range []struct {
		heading string
		make    func(*testing.T) *mistake
	}{
		{"Error texts", hostpathMistake},
		{"Error texts of NFS classes", nfsMistake},
	} {
		rows := errorRows(t, c.heading)
		for _, row := range rows {
			cause, text := row[0].text, row[1].snippets[0]
			t.Run(c.heading+"/"+cause, func(t *testing.T) {
				if reason := untold[cause]; reason != "" {
					t.Skip(reason)
				}
				m := c.make(t)
				m.read(text)
				if change := mistakes[cause]; change != nil {
					used[cause] = true
					change(m)
				}
				_, _, err := m.driver.Provision(t.Context(), m.ProvisionOptions)
				if !provisioner.IsInfeasible(err) {
					t.Fatalf("error %v; want an infeasible one", err)
				}
				if !pattern(text).MatchString(err.Error()) {
					t.Errorf("the page says\n%s\nand the driver\n%s", text, err)
				}
			})
		}
	}
	for cause := range mistakes {
		if !used[cause] {
			t.Errorf("no row has the cause %q", cause)
		}
	}
}

// errorRows returns the rows of the first table below a heading of the reference.
func errorRows(t *testing.T, heading string) [][]cell {
	t.Helper()
	for _, table := range checkout(t).page("docs/storageclass.md").tables {
		if table.heading == heading {
			return table.rows
		}
	}
	t.Fatalf("docs/storageclass.md has no table below %q", heading)
	return nil
}

// size is an example of a disk's size.
var size = regexp.MustCompile(`[0-9]+Gi in all`)

// pattern returns what matches a text, in which "…" stands for anything.
func pattern(text string) *regexp.Regexp {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(text), "…", ".*")
	return regexp.MustCompile("^" + size.ReplaceAllString(quoted, `\S+ in all`) + "$")
}

var (
	named = regexp.MustCompile(`StorageClass parameter (\w+): "(.*?)": `)
	field = regexp.MustCompile(`StorageClass field mountOptions: "(.*?)": `)
)

// read gives the class the parameter or the mount option that a text repeats.
func (m *mistake) read(text string) {
	m.t.Helper()
	if match := named.FindStringSubmatch(text); match != nil {
		value, err := strconv.Unquote(`"` + match[2] + `"`)
		m.ok(err)
		m.StorageClass.Parameters[match[1]] = value
	}
	if match := field.FindStringSubmatch(text); match != nil {
		m.StorageClass.MountOptions = []string{match[1]}
	}
}

func (m *mistake) ok(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// provisionOther makes the volume of another claim.
func (m *mistake) provisionOther(path string) {
	m.t.Helper()
	other := m.ProvisionOptions
	other.PVName, other.PVC, other.StorageClass = "pvc-2", m.PVC.DeepCopy(), m.StorageClass.DeepCopy()
	other.PVC.Name, other.PVC.UID = "other", "uid-2"
	other.StorageClass.Parameters["pathPattern"] = path
	_, _, err := m.driver.Provision(m.t.Context(), other)
	m.ok(err)
}

func claimOf(provisioner string, parameters map[string]string) controller.ProvisionOptions {
	return controller.ProvisionOptions{
		StorageClass: &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, Provisioner: provisioner, Parameters: parameters},
		PVName:       "pvc-1",
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "uid-1", Annotations: map[string]string{}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
			},
		},
	}
}

// hostpathMistake is a claim for the only node, n1, without a mistake so far.
func hostpathMistake(t *testing.T) *mistake {
	m := &mistake{t: t, pool: t.TempDir(), ProvisionOptions: claimOf(hostpath.Name, map[string]string{})}
	nodes, err := hostpath.NewLocal(node.Options{
		NodeName: "n1", Pools: map[string][]string{"default": {m.pool}}, Limits: node.DefaultLimits, Log: logr.Discard(),
	})
	m.ok(err)
	driver, err := hostpath.New(hostpath.Options{
		Nodes: nodes,
		Node: func(_ context.Context, name string) (*corev1.Node, error) {
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}, nil
		},
		Log: logr.Discard(),
	})
	m.ok(err)
	t.Cleanup(func() { m.ok(driver.Close()) })
	m.driver = driver
	return m
}

// nfsMistake is the same for a server that does not exist: nobody calls it.
func nfsMistake(t *testing.T) *mistake {
	driver, err := nfs.New(nfs.Options{AnswerTimeout: time.Millisecond, Log: logr.Discard()})
	m := &mistake{t: t, driver: driver, ProvisionOptions: claimOf(nfs.Name, map[string]string{"server": "127.0.0.1", "share": "/export"})}
	m.ok(err)
	return m
}
