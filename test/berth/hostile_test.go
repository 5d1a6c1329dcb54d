package berth_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/request"
)

const (
	secret  = "nobody may touch this"
	dirKey  = "example.com/dir"
	dirPath = "${pvc.annotations['" + dirKey + "']}"
)

// canary makes a directory with a secret in it and returns a check that both are
// as they were, and alone.
func (s *site) canary(path string) (check func()) {
	s.t.Helper()
	s.ok(os.MkdirAll(path, 0o750))
	file := filepath.Join(path, "secret")
	s.ok(os.WriteFile(file, []byte(secret), 0o600))
	return func() {
		s.t.Helper()
		content, err := os.ReadFile(file)
		if err != nil || string(content) != secret {
			s.t.Errorf("%s holds %q, %v", file, content, err)
		}
		entries, err := os.ReadDir(path)
		if err != nil || len(entries) != 1 {
			s.t.Errorf("%s has %d entries, %v; want the secret alone", path, len(entries), err)
		}
	}
}

// hostileClaim is a claim that must not be given a volume.
type hostileClaim struct {
	parameters []string
	edit       func(*corev1.PersistentVolumeClaim)
	plant      func(*site)
	says       []string // in the one event
}

func at(dir string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[dirKey] = dir }
}

// symlink plants a symbolic link out of the pool at path, whose directories it
// makes.
func symlink(path string) func(*site) {
	return func(s *site) {
		link := filepath.Join(s.pool, path)
		s.ok(os.MkdirAll(filepath.Dir(link), 0o750))
		s.ok(os.Symlink(filepath.Join(s.dir, "canary"), link))
	}
}

func TestHostileClaims(t *testing.T) {
	s := newSite(t)
	intact := s.canary(filepath.Join(s.dir, "canary"))
	s.class(s.name)
	s.start("", swept...)
	s.expectBound(s.claim("honest")) // the pool is in use
	before := s.directories()

	claims := map[string]hostileClaim{
		"two dots from an annotation":    {parameters: []string{"pathPattern", dirPath}, edit: at(".."), says: []string{"pathPattern", `".."`, "is not a name"}},
		"two dots below a directory":     {parameters: []string{"pathPattern", "dots/" + dirPath}, edit: at(".."), says: []string{"pathPattern", `".."`, "is not a name"}},
		"one dot":                        {parameters: []string{"pathPattern", dirPath}, edit: at("."), says: []string{"pathPattern", `"."`, "is not a name"}},
		"an empty annotation":            {parameters: []string{"pathPattern", "empty/" + dirPath}, edit: at(""), says: []string{"pathPattern", "is empty"}},
		"no such annotation":             {parameters: []string{"pathPattern", dirPath}, says: []string{"pathPattern", "the claim lacks", dirKey}},
		"our own directory":              {parameters: []string{"pathPattern", dirPath}, edit: at(".Berth"), says: []string{"pathPattern", "reserved"}},
		"a class with two dots":          {parameters: []string{"pathPattern", "../canary"}, says: []string{"pathPattern", `".."`}},
		"a class with two dots inside":   {parameters: []string{"pathPattern", "a/../../canary"}, says: []string{"pathPattern", `".."`}},
		"a class with an absolute path":  {parameters: []string{"pathPattern", "/etc"}, says: []string{"pathPattern", "must be relative"}},
		"a class in our own directory":   {parameters: []string{"pathPattern", ".berth/volumes/${pvc.name}"}, says: []string{"pathPattern", "reserved"}},
		"a class with an unknown pool":   {parameters: []string{"pool", "nvme"}, says: []string{"nvme"}},
		"a class with an unknown option": {parameters: []string{"script", "rm -rf /"}, says: []string{"script", "no such parameter"}},
		"an annotation of 10,000 characters": {parameters: []string{"pathPattern", dirPath}, edit: at(strings.Repeat("long", 2500)),
			says: []string{"pathPattern", "10000 bytes long"}},
		"a symbolic link at the first level": {parameters: []string{"pathPattern", "one/two/${pvc.name}"}, plant: symlink("one"), says: []string{`"one" is a file, a symbolic link`}},
		"a symbolic link at a middle level":  {parameters: []string{"pathPattern", "mid/two/${pvc.name}"}, plant: symlink("mid/two"), says: []string{`"mid/two" is a file, a symbolic link`}},
		"a symbolic link at the last level":  {parameters: []string{"pathPattern", "last/two/three"}, plant: symlink("last/two/three"), says: []string{`"last/two/three" is a file, a symbolic link`}},
		"a directory that is somebody's": {parameters: []string{"pathPattern", "somebody"}, plant: func(s *site) { s.ok(os.Mkdir(filepath.Join(s.pool, "somebody"), 0o750)) },
			says: []string{"somebody", "belongs to no volume"}},
		"the directory of another volume": {parameters: []string{"pathPattern", before[0]}, says: []string{"another volume"}},
		"inside another volume":           {parameters: []string{"pathPattern", before[0] + "/sub"}, says: []string{"another volume"}},
		"a selector": {edit: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "ssd"}}
		}, says: []string{"spec.selector", "disk=ssd"}},
		"a block volume":         {edit: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }, says: []string{"spec.volumeMode", "Block"}},
		"shared between nodes":   {edit: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, says: []string{"spec.accessModes", "ReadWriteMany"}},
		"more than there can be": {edit: func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized("16Ei") }, says: []string{"spec.resources.requests.storage", "9223372036854775807", "in all"}},
		"a snapshot to begin with": {edit: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "x"}
		}, says: []string{"spec.dataSource", "VolumeSnapshot"}},
		"an unknown thing to begin with": {edit: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To("example.com"), Kind: "Widget", Name: "x"}
		}, says: []string{"spec.dataSource", "Widget"}},
	}
	created := map[string]*corev1.PersistentVolumeClaim{}
	for name, h := range claims {
		if h.plant != nil {
			h.plant(s)
		}
		class := fmt.Sprintf("%s-hostile-%d", s.name, len(created))
		s.class(class, h.parameters...)
		claim := s.newClaim(fmt.Sprintf("hostile-%d", len(created)), class)
		if h.edit != nil {
			h.edit(claim)
		}
		s.create(claim)
		created[name] = claim
	}
	for name, claim := range created {
		t.Run(name, func(t *testing.T) {
			g := gomega.NewWithT(t)
			g.Eventually(func() []string { return s.warnings(claim) }).ShouldNot(gomega.BeEmpty())
			note := s.warnings(claim)[0]
			t.Log(note)
			for _, text := range append(claims[name].says, "failed to provision volume with StorageClass") {
				g.Expect(note).To(gomega.ContainSubstring(text))
			}
			g.Expect(len(note)).To(gomega.BeNumerically("<=", 1024))
		})
	}
	for name, claim := range created {
		if name == "a class with an unknown pool" {
			continue // a pool may be configured later: it is tried again
		}
		if notes := s.warnings(claim); len(notes) != 1 {
			t.Errorf("%s: %d events, want one: %q", name, len(notes), notes)
		}
		if s.get(claim); claim.Status.Phase != corev1.ClaimPending {
			t.Errorf("%s: the claim is %s", name, claim.Status.Phase)
		}
	}
	s.Expect(s.volumes()).To(gomega.HaveLen(1))
	s.Expect(s.markers()).To(gomega.HaveLen(1))
	intact()
}

// TestSlashesOfAClaimDoNotLeaveThePool: what a claim says is one name, however
// it is written.
func TestSlashesOfAClaimDoNotLeaveThePool(t *testing.T) {
	s := newSite(t)
	intact := s.canary(filepath.Join(s.dir, "canary"))
	s.class(s.name, "pathPattern", dirPath)
	s.start("")
	for i, dir := range []string{"../canary", "/etc/cron.d", "a/../../canary", "%2e%2e", "..\n", "$(reboot)", "a/b"} {
		claim := s.newClaim(fmt.Sprintf("data-%d", i), s.name)
		at(dir)(claim)
		s.create(claim)
		volume := s.expectBound(claim)
		path := volume.Spec.Local.Path
		s.Expect(filepath.Dir(path)).To(gomega.Equal(s.pool), "annotation %q", dir)
		s.Expect(path).To(gomega.BeADirectory())
		s.delete(claim)
		s.Eventually(func() bool { return s.get(volume) }).Should(gomega.BeFalse())
	}
	s.expectNothingLeft()
	intact()
}

// TestAPIServerRefuses shows what never gets as far as berth.
func TestAPIServerRefuses(t *testing.T) {
	s := newSite(t)
	for name, edit := range map[string]func(*corev1.PersistentVolumeClaim){
		"a label with a slash":         func(c *corev1.PersistentVolumeClaim) { c.Labels["dir"] = "../canary" },
		"a label of two dots":          func(c *corev1.PersistentVolumeClaim) { c.Labels["dir"] = ".." },
		"a label of 10,000 characters": func(c *corev1.PersistentVolumeClaim) { c.Labels["dir"] = strings.Repeat("l", 10_000) },
		"a size of nothing":            func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized("0") },
		"a size of less than nothing":  func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sized("-1Gi") },
		"a claim's name with two dots": func(c *corev1.PersistentVolumeClaim) { c.Name = ".." },
		"a claim's name with a slash":  func(c *corev1.PersistentVolumeClaim) { c.Name = "a/b" },
		"a claim without access modes": func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = nil },
	} {
		t.Run(name, func(t *testing.T) {
			claim := s.newClaim("data", s.name)
			edit(claim)
			if err := s.client.Create(t.Context(), claim, client.DryRunAll); !apierrors.IsInvalid(err) {
				t.Errorf("Create = %v, want it to be invalid", err)
			}
		})
	}
}

func TestPoolThatIsASymbolicLinkIsRefused(t *testing.T) {
	s := newSite(t)
	intact := s.canary(filepath.Join(s.dir, "canary"))
	s.ok(os.Remove(s.pool))
	s.ok(os.Symlink(filepath.Join(s.dir, "canary"), s.pool))
	s.class(s.name)
	s.start("")
	claim := s.claim("data")
	s.Eventually(func() []string { return s.warnings(claim) }).Should(gomega.ContainElement(gomega.ContainSubstring(s.pool)))
	t.Log(s.warnings(claim)[0])
	s.Expect(s.volumes()).To(gomega.BeEmpty())
	intact()
}

func TestPoolThatIsMissingIsNotMade(t *testing.T) {
	s := newSite(t)
	s.ok(os.Remove(s.pool))
	s.class(s.name)
	s.start("")
	claim := s.claim("data")
	s.Eventually(func() []string { return s.warnings(claim) }).Should(gomega.ContainElement(gomega.ContainSubstring(s.pool)))
	t.Log(s.warnings(claim)[0])
	s.Expect(s.pool).NotTo(gomega.BeADirectory())
	s.ok(os.Mkdir(s.pool, 0o750)) // it is mounted at last
	s.expectBound(claim)
}

func TestPoolWhoseDiskIsGoneIsNotTakenForANewOne(t *testing.T) {
	s := newSite(t)
	s.class(s.name)
	first := s.start("")
	s.expectBound(s.claim("data"))
	first.stop()
	s.ok(os.Rename(s.pool, s.pool+".unmounted"))
	s.ok(os.Mkdir(s.pool, 0o750))
	s.start("")
	claim := s.claim("more")
	s.Eventually(func() []string { return s.warnings(claim) }).Should(gomega.ContainElement(gomega.ContainSubstring("mounted")))
	t.Log(s.warnings(claim)[0])
	s.Expect(s.entries()).To(gomega.BeEmpty())
}

// TestForgedVolumesDeleteNothing makes PersistentVolumes that say that berth made
// them, with somebody else's directory, and a claim that is gone.
func TestForgedVolumesDeleteNothing(t *testing.T) {
	s := newSite(t)
	intact := s.canary(filepath.Join(s.dir, "canary"))
	s.class(s.name)
	first := s.start("")
	victim := s.claim("victim")
	owned := s.expectBound(victim)
	s.fill(owned)
	first.stop()

	path := owned.Annotations[request.AnnPath]
	forgeries := map[string]*corev1.PersistentVolume{
		"a path out of the pool":               s.forgery("out", "../canary", filepath.Join(s.dir, "canary")),
		"another path than the annotation's":   s.forgery("other", "canary", filepath.Join(s.dir, "canary")),
		"the pool itself":                      s.forgery("pool", ".", s.pool),
		"our own directory":                    s.forgery("own", ".berth", filepath.Join(s.pool, ".berth")),
		"the directory of another volume":      s.forgery("victim", path, owned.Spec.Local.Path),
		"a directory inside of another volume": s.forgery("inside", path+"/c", filepath.Join(owned.Spec.Local.Path, "c")),
	}
	for _, forged := range forgeries {
		s.create(forged)
		s.t.Cleanup(func() { s.release(forged) })
	}
	for _, forged := range forgeries {
		// kube-controller-manager finds the claim gone.
		s.Eventually(func() corev1.PersistentVolumePhase { s.get(forged); return forged.Status.Phase }).Should(gomega.Equal(corev1.VolumeReleased))
	}
	s.start("", swept...)
	for name, forged := range forgeries {
		t.Run(name, func(t *testing.T) {
			gomega.NewWithT(t).Eventually(func() bool {
				return !s.get(forged) || len(s.warnings(forged)) > 0
			}).Should(gomega.BeTrue(), "neither told about nor let go")
			t.Log(append(s.warnings(forged), "gone: "+fmt.Sprint(!s.get(forged))))
		})
	}
	s.Consistently(func() []string { return s.entries(".berth", "trash") }, 2*time.Second).Should(gomega.BeEmpty())
	intact()
	s.Expect(os.ReadFile(filepath.Join(owned.Spec.Local.Path, "c", "d"))).To(gomega.Equal([]byte("c/d")))
	s.expectBound(victim)
}

func (s *site) forgery(name, path, directory string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.name + "-" + name,
			Annotations: map[string]string{
				"pv.kubernetes.io/provisioned-by": hostpath.Name,
				request.AnnDriver:                 hostpath.Name,
				hostpath.AnnNode:                  s.name,
				hostpath.AnnPool:                  "default",
				request.AnnPath:                   path,
				request.AnnOnDelete:               "delete",
				request.AnnClaim:                  s.name + "/gone",
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      sized("1Mi"),
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              s.name,
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: s.name, Name: "gone", UID: "00000000-0000-0000-0000-000000000000"},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: directory}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{s.name}}},
			}}}},
		},
	}
}

// release deletes a volume that berth will not.
func (s *site) release(volume *corev1.PersistentVolume) {
	ctx := context.Background()
	_ = s.client.Delete(ctx, volume)
	_ = s.client.Patch(ctx, volume, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
}
