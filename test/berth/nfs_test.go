package berth_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/provisioner/nfs"
	"github.com/berth-storage/berth/test/nfsserver"
)

// twoServers is a site whose berth serves two NFS servers.
type twoServers struct {
	*site
	one, two *nfsserver.Server
	// classes and bases are the classes' names and the exported directories.
	classes, bases [2]string
}

const (
	sharedMode  = 0o2770
	sharedOwner = 1500
)

func newTwoServers(t *testing.T) *twoServers {
	t.Helper()
	s := &twoServers{site: newSite(t)}
	servers := [2]*nfsserver.Server{}
	for i := range servers {
		s.bases[i] = filepath.Join(s.dir, fmt.Sprint("export", i))
		s.ok(os.Mkdir(s.bases[i], 0o755))
		servers[i] = nfsserver.ForTest(t, nfsserver.Export{Path: s.bases[i], Pseudo: "/export"})
		s.classes[i] = fmt.Sprintf("%s-nfs-%d", s.name, i)
		s.provisioner, s.parameters = nfs.Name, nfsParameters(servers[i])
		s.class(s.classes[i], "mode", "2770", "uid", strconv.Itoa(sharedOwner), "gid", strconv.Itoa(sharedOwner))
	}
	s.one, s.two = servers[0], servers[1]
	return s
}

func (s *twoServers) claimName(class, i int) string { return fmt.Sprintf("data-%d-%d", class, i) }

// ask creates n claims of each of the classes, at once.
func (s *twoServers) ask(from, n int, classes ...int) {
	s.t.Helper()
	s.all(n*len(classes), func(i int) error {
		class := classes[i%len(classes)]
		return s.client.Create(s.t.Context(), s.newClaim(s.claimName(class, from+i/len(classes)), s.classes[class]))
	})
}

// bound returns how many claims of a class are Bound.
func (s *twoServers) bound(class int) int {
	s.t.Helper()
	var list corev1.PersistentVolumeClaimList
	s.ok(s.client.List(s.t.Context(), &list, client.InNamespace(s.name)))
	count := 0
	for _, c := range list.Items {
		if *c.Spec.StorageClassName == s.classes[class] && c.Status.Phase == corev1.ClaimBound {
			count++
		}
	}
	return count
}

// timeToBound creates n claims of the classes at once, and returns after how
// long all but one in a hundred of the first class were Bound.
func (s *twoServers) timeToBound(from, n int, classes ...int) time.Duration {
	s.t.Helper()
	begun := time.Now()
	s.ask(from, n, classes...)
	s.Eventually(func() int { return s.bound(classes[0]) }, 2*time.Minute, 20*time.Millisecond).Should(gomega.BeNumerically(">=", from+n-n/100))
	return time.Since(begun)
}

// directoriesOf lists the volumes' directories on a share, and checks each.
func (s *twoServers) directoriesOf(class int) []string {
	s.t.Helper()
	entries, err := os.ReadDir(s.bases[class])
	s.ok(err)
	var names []string
	for _, e := range entries {
		if e.Name() == ".berth" {
			continue
		}
		var st syscall.Stat_t
		err := syscall.Lstat(filepath.Join(s.bases[class], e.Name()), &st)
		if errors.Is(err, syscall.ENOENT) {
			continue // deleted since it was listed
		}
		s.ok(err)
		names = append(names, e.Name())
		if st.Mode != syscall.S_IFDIR|sharedMode || st.Uid != sharedOwner || st.Gid != sharedOwner {
			s.t.Errorf("%s has mode %#o and owner %d:%d", e.Name(), st.Mode, st.Uid, st.Gid)
		}
	}
	return names
}

func (s *twoServers) expectDirectories(n int) {
	s.t.Helper()
	for class := range s.classes {
		s.Expect(s.directoriesOf(class)).To(gomega.HaveLen(n))
	}
}

// deleteAll deletes n claims of each class, and waits until nothing is left.
func (s *twoServers) deleteAll(n int) {
	s.t.Helper()
	s.all(n*len(s.classes), func(i int) error {
		class := i % len(s.classes)
		return s.client.Delete(s.t.Context(), s.newClaim(s.claimName(class, i/len(s.classes)), s.classes[class]))
	})
	left := func() map[string]int {
		counts := map[string]int{"volumes": len(s.volumes())}
		for class, base := range s.bases {
			counts["directories"] += len(s.directoriesOf(class))
			for _, dir := range []string{"volumes", "trash"} {
				entries, err := os.ReadDir(filepath.Join(base, ".berth", dir))
				s.ok(err)
				counts[dir] += len(entries)
			}
		}
		maps.DeleteFunc(counts, func(_ string, n int) bool { return n == 0 })
		return counts
	}
	s.Eventually(left, 3*time.Minute, 200*time.Millisecond).Should(gomega.BeEmpty())
}

func TestFiveHundredClaimsOnTwoNFSServers(t *testing.T) {
	const each = 250
	s := newTwoServers(t)
	p := s.start("")
	begun := time.Now()
	s.ask(0, each, 0, 1)
	s.Eventually(func() int { return s.bound(0) + s.bound(1) }, 2*time.Minute, 100*time.Millisecond).Should(gomega.Equal(2 * each))
	t.Logf("%d claims on two servers Bound after %s", 2*each, time.Since(begun))
	s.expectDirectories(each)
	s.deleteAll(each)
	p.stop()
}

// One server is silent for a minute: its claims wait, the other's don't.
func TestSilentNFSServerHoldsUpNobodyElse(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes about two minutes")
	}
	const each = 100
	s := newTwoServers(t)
	pprof := freeAddress(t)
	p := s.start("", "--pprof-bind-address="+pprof, "--nfs-answer-timeout=5s")
	s.timeToBound(0, each, 0)
	s.ask(0, each, 1)
	s.Eventually(func() int { return s.bound(1) }).Should(gomega.Equal(each))
	quiet := s.timeToBound(each, each, 0, 1)
	s.Eventually(func() int { return s.bound(1) }).Should(gomega.Equal(2 * each))
	goroutines, memory := s.goroutines(pprof), p.memory()

	s.ok(s.two.Pause())
	silence := time.Now()
	disturbed := s.timeToBound(2*each, each, 0, 1)
	t.Logf("99 of 100 claims of the server that answers Bound after %s, beside a silent one after %s", quiet, disturbed)
	if disturbed > 2*quiet+time.Second {
		t.Errorf("a silent server makes the other's claims wait for %s instead of %s", disturbed, quiet)
	}
	waiting := &corev1.PersistentVolumeClaim{}
	waiting.Namespace, waiting.Name = s.name, s.claimName(1, 2*each)
	s.get(waiting)
	text := fmt.Sprintf("server %s:%d did not answer within 5s", nfsserver.Address, s.two.Port)
	s.Eventually(func() []string { return s.warnings(waiting) }).Should(gomega.ContainElement(gomega.ContainSubstring(text)))

	// Those that come later are served too, to the end of the silence.
	for i := 0; time.Since(silence) < time.Minute; i++ {
		claim := s.newClaim(fmt.Sprintf("later-%d", i), s.classes[0])
		s.create(claim)
		s.expectBound(claim)
	}
	s.Expect(s.bound(1)).To(gomega.Equal(2 * each))
	s.ok(s.two.Resume())
	begun := time.Now()
	s.Eventually(func() int { return s.bound(1) }, 2*time.Minute, 100*time.Millisecond).Should(gomega.Equal(3 * each))
	t.Logf("the claims of the silent server Bound %s after it was back", time.Since(begun))
	s.Expect(s.directoriesOf(1)).To(gomega.HaveLen(3*each), "each claim's directory once")
	s.Eventually(func() int { return s.goroutines(pprof) }).Should(gomega.BeNumerically("<=", goroutines+10))
	t.Logf("goroutines of berth before %d, after %d; resident memory before %d MiB, after %d MiB",
		goroutines, s.goroutines(pprof), memory>>20, p.memory()>>20)
	s.Expect(p.memory()).To(gomega.BeNumerically("<", 2*memory+64<<20))
	p.stop()
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// goroutines counts those of the process that run this module's drivers.
func (s *site) goroutines(pprof string) int {
	s.t.Helper()
	response, err := http.Get("http://" + pprof + "/debug/pprof/goroutine?debug=2")
	s.ok(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	s.ok(err)
	return len(slices.DeleteFunc(strings.Split(string(text), "\n\n"), func(stack string) bool {
		return !strings.Contains(stack, "berth/provisioner/")
	}))
}

var residentMemory = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// memory is the resident memory of the process in bytes.
func (p *process) memory() int64 {
	p.s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	p.s.ok(err)
	found := residentMemory.FindSubmatch(text)
	if found == nil {
		p.s.t.Fatal("no VmRSS")
	}
	kilobytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	p.s.ok(err)
	return kilobytes << 10
}
