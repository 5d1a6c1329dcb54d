package berth_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/internal/crashpoint"
)

// The points at which a volume is being made, those at which it is being ended,
// and those at which it grows. Together they must be all there are.
var (
	makingPoints = []crashpoint.Point{
		crashpoint.MarkerWritten, crashpoint.DirectoryCreated, crashpoint.VolumeCreated,
		crashpoint.VolumePhaseBound, crashpoint.ClaimSpecBound, crashpoint.ClaimPhaseBound,
	}
	endingPoints = []crashpoint.Point{
		crashpoint.MovedToTrash, crashpoint.MarkerRemoved, crashpoint.StorageDeleted,
		crashpoint.VolumeDeleted, crashpoint.FinalizerRemoved, crashpoint.TrashPartlyPurged,
	}
	growingPoints = []crashpoint.Point{crashpoint.SizeAllocated, crashpoint.StorageExpanded, crashpoint.VolumeExpanded}
	// limitPoints need a disk with project quotas: package quota tests them.
	limitPoints = []crashpoint.Point{crashpoint.ProjectSet, crashpoint.LimitRaised, crashpoint.LimitLifted}
)

// TestEveryCrashPointIsTested reads the points from their source.
func TestEveryCrashPointIsTested(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../internal/crashpoint/crashpoint.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []crashpoint.Point
	ast.Inspect(file, func(n ast.Node) bool {
		if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			all = append(all, crashpoint.Point(strings.Trim(literal.Value, `"`)))
		}
		return true
	})
	if diff := cmp.Diff(all, slices.Concat(makingPoints, endingPoints, growingPoints, limitPoints)); diff != "" {
		t.Errorf("points (-in the source +tested):\n%s", diff)
	}
}

// eager has berth bind before kube-controller-manager does, most of the time.
const eager = "--bind-grace=2ms"

// swept has berth remove orphans at once.
var swept = []string{"--orphan-grace=0s", "--orphan-interval=1s"}

// crashSites are the drivers that berth is killed with.
var crashSites = map[string]func(*testing.T) *site{
	"hostpath": newSite,
	"nfs":      func(t *testing.T) *site { return newNFSSite(t) },
}

// eachCrash runs a test for every driver and every point.
func eachCrash(t *testing.T, points []crashpoint.Point, test func(t *testing.T, point crashpoint.Point, newCrashSite func(*testing.T) *site)) {
	t.Helper()
	for driver, newSite := range crashSites {
		for _, point := range points {
			t.Run(driver+"/"+string(point), func(t *testing.T) {
				test(t, point, func(t *testing.T) *site {
					s := newSite(t)
					s.class(s.name)
					return s
				})
			})
		}
	}
}

// bindingPoints are reached only when berth binds.
var bindingPoints = []crashpoint.Point{crashpoint.VolumePhaseBound, crashpoint.ClaimSpecBound, crashpoint.ClaimPhaseBound}

// crashWhileMaking creates claims until berth was killed at point. That is the
// first one, unless kube-controller-manager has bound it before berth could. One by
// one it binds them all; so where it must not, there are more at once than
// its client may write in a second.
func (s *site) crashWhileMaking(point crashpoint.Point) []*corev1.PersistentVolumeClaim {
	s.t.Helper()
	p := s.start(point, eager)
	atOnce := 1
	if slices.Contains(bindingPoints, point) {
		atOnce = 40
	}
	var claims []*corev1.PersistentVolumeClaim
	for p.running() && len(claims) < 200 {
		for range atOnce {
			claims = append(claims, s.claim(fmt.Sprintf("data-%d", len(claims))))
		}
		s.Eventually(func() bool {
			return !p.running() || !slices.ContainsFunc(claims, func(claim *corev1.PersistentVolumeClaim) bool {
				s.get(claim)
				return claim.Status.Phase != corev1.ClaimBound
			})
		}).Should(gomega.BeTrue())
	}
	p.expectCrash()
	return claims
}

// fill writes into the volume's directory, as a pod would.
func (s *site) fill(volume *corev1.PersistentVolume) {
	s.t.Helper()
	for _, name := range []string{"a", "b", "c/d", "c/e"} {
		path := filepath.Join(s.dirOf(volume), name)
		s.ok(os.MkdirAll(filepath.Dir(path), 0o750))
		s.ok(os.WriteFile(path, []byte(name), 0o600))
	}
}

func TestKilledWhileMakingAVolume(t *testing.T) {
	eachCrash(t, makingPoints, func(t *testing.T, point crashpoint.Point, newCrashSite func(*testing.T) *site) {
		t.Run("it is finished after a restart", func(t *testing.T) {
			s := newCrashSite(t)
			claims := s.crashWhileMaking(point)
			s.start("")
			for _, claim := range claims {
				s.expectBound(claim)
			}
			n := len(claims)
			s.Expect(s.inventory()).To(gomega.Equal(inventory{volumes: n, directories: n, markers: n}))
			for _, claim := range claims {
				s.fill(s.expectBound(claim)) // the directory is the volume's
				s.delete(claim)
			}
			s.expectNothingLeft()
		})
		t.Run("nothing is left when the claim goes meanwhile", func(t *testing.T) {
			s := newCrashSite(t)
			claims := s.crashWhileMaking(point)
			for _, claim := range claims {
				s.delete(claim)
			}
			for _, claim := range claims {
				s.Eventually(func() bool { return s.get(claim) }).Should(gomega.BeFalse())
			}
			s.start("", swept...)
			s.expectNothingLeft()
		})
	})
}

func TestKilledWhileEndingAVolume(t *testing.T) {
	eachCrash(t, endingPoints, func(t *testing.T, point crashpoint.Point, newCrashSite func(*testing.T) *site) {
		t.Run("that held data", func(t *testing.T) {
			s := newCrashSite(t)
			first := s.start("")
			claim, kept := s.claim("data"), s.claim("kept")
			s.fill(s.expectBound(claim))
			survivor := s.expectBound(kept)
			s.fill(survivor)
			first.stop()
			second := s.start(point)
			s.delete(claim)
			second.expectCrash()
			s.start("", swept...)
			s.Eventually(s.inventory).Should(gomega.Equal(inventory{volumes: 1, directories: 1, markers: 1}))
			s.Expect(s.expectBound(kept).Name).To(gomega.Equal(survivor.Name))
			s.Expect(os.ReadFile(filepath.Join(s.dirOf(survivor), "c", "d"))).To(gomega.Equal([]byte("c/d")))
			s.delete(kept)
			s.expectNothingLeft()
		})
		t.Run("that the claim did not wait for, after another crash", func(t *testing.T) {
			s := newCrashSite(t)
			for _, claim := range s.crashWhileMaking(crashpoint.VolumeCreated) {
				s.delete(claim)
				s.Eventually(func() bool { return s.get(claim) }).Should(gomega.BeFalse())
			}
			s.Eventually(s.volumePhases).Should(gomega.HaveEach(corev1.VolumeReleased), "kube-controller-manager saw it first")
			s.start(point).expectCrash()
			s.start("", swept...)
			s.expectNothingLeft()
		})
	})
}

// The archive is reached by the same steps as the trash, and one more.
func TestKilledWhileArchiving(t *testing.T) {
	for _, point := range []crashpoint.Point{crashpoint.MovedToTrash, crashpoint.MarkerRemoved, crashpoint.StorageDeleted, crashpoint.VolumeDeleted} {
		t.Run(string(point), func(t *testing.T) {
			s := newNFSSite(t, "onDelete", "archive")
			s.class(s.name)
			first := s.start("")
			claim := s.claim("data")
			s.fill(s.expectBound(claim))
			first.stop()
			second := s.start(point)
			s.delete(claim)
			second.expectCrash()
			s.start("", swept...)
			s.expectNothingLeft()
			archived := s.entries(".berth", "archive")
			s.Expect(archived).To(gomega.HaveLen(2), "the directory and its marker")
			s.Expect(os.ReadFile(filepath.Join(s.pool, ".berth", "archive", archived[0], "c", "d"))).To(gomega.Equal([]byte("c/d")))
		})
	}
}

func TestKilledWhileExpanding(t *testing.T) {
	eachCrash(t, growingPoints, func(t *testing.T, point crashpoint.Point, newCrashSite func(*testing.T) *site) {
		s := newCrashSite(t)
		first := s.start(point)
		claim := s.claim("data")
		volume := s.expectBound(claim)
		s.fill(volume)
		s.get(claim)
		before := claim.DeepCopy()
		claim.Spec.Resources.Requests = sized("2Mi")
		s.ok(s.client.Patch(t.Context(), claim, client.MergeFrom(before))) // whoever else writes to it
		first.expectCrash()
		// Its owner asks for less meanwhile: the storage may have granted more, and
		// quotas must go on to count that.
		s.get(claim)
		lower := claim.DeepCopy()
		lower.Spec.Resources.Requests = sized("1536Ki")
		refused := s.client.Patch(t.Context(), lower, client.MergeFrom(claim))
		s.Expect(refused == nil).To(gomega.Equal(len(claim.Status.AllocatedResources) > 0), "API servers that count only requests take no smaller ones: %v", refused)
		s.start("")
		s.Eventually(func() []string {
			s.get(claim)
			s.get(volume)
			return []string{claim.Status.Capacity.Storage().String(), volume.Spec.Capacity.Storage().String()}
		}).Should(gomega.HaveEach("2Mi"))
		if refused == nil {
			s.Expect(claim.Status.AllocatedResources.Storage().String()).To(gomega.Equal("2Mi"))
			s.Expect(claim.Status.AllocatedResourceStatuses).To(gomega.BeEmpty())
		}
		s.Expect(os.ReadFile(filepath.Join(s.dirOf(volume), "c", "d"))).To(gomega.Equal([]byte("c/d")))
	})
}
