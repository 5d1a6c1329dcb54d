package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// adopt is a request to adopt old/data.
func adopt(name string, size int64, dryRun string) *csi.CreateVolumeRequest {
	return ask(name, size, wire.ParamPath, "old/data", wire.ParamExisting, wire.ExistingAdopt, wire.ParamDryRun, dryRun)
}

// bring makes old/data, with a file of that size, in a pool's directory.
func bring(t *testing.T, base string, size int) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(base, "old/data"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "old/data/file"), make([]byte, size), 0o600))
}

// wantNoVolumes wants no marker in the pool's directories.
func wantNoVolumes(t *testing.T, bases ...string) {
	t.Helper()
	for _, base := range bases {
		if found, _ := filepath.Glob(filepath.Join(base, ".berth/volumes/*")); len(found) > 0 {
			t.Errorf("there are %v", found)
		}
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	o := options(t, 2)
	bases := o.Pools[wire.DefaultPool]
	c := dial(t, newServer(t, o))
	_, err := c.CreateVolume(t.Context(), adopt("pvc-1", gi, wire.DryRunYes))
	wantCode(t, err, codes.NotFound, "old/data", "pool default: directories "+bases[0]+" and "+bases[1]+": ")
	if !errors.Is(wire.Error(err), directory.ErrNoDirectory) {
		t.Errorf("%v does not say so", err)
	}
	bring(t, bases[1], 10)
	v := create(t, c, adopt("pvc-1", gi, wire.DryRunYes))
	if v.GetVolumeId() != "" || v.GetVolumeContext()[wire.ContextDirectory] != bases[1] || v.GetVolumeContext()[wire.ContextPath] != "old/data" {
		t.Errorf("%v", v)
	}
	wantNoVolumes(t, bases...)
	if got := entries(t, bases[0]); len(got) != 1 {
		t.Errorf("the other directory has %v", got)
	}
	made := create(t, c, adopt("pvc-1", gi, wire.DryRunNo))
	again := create(t, c, adopt("pvc-1", gi, wire.DryRunYes))
	if again.GetVolumeId() != made.GetVolumeId() || made.GetVolumeContext()[wire.ContextAdopted] != wire.AdoptedYes || made.GetVolumeContext()[wire.ContextDirectory] != bases[1] {
		t.Errorf("%v, then %v", made, again)
	}
	// For another claim it is taken.
	_, err = c.CreateVolume(t.Context(), adopt("pvc-2", gi, wire.DryRunYes))
	wantCode(t, err, codes.InvalidArgument, "another volume is, or lies in")
	if !provisioner.IsInfeasible(wire.Error(err)) {
		t.Errorf("%v is not infeasible", err)
	}
	_, err = c.CreateVolume(t.Context(), ask("pvc-3", gi, wire.ParamDryRun, wire.DryRunYes))
	wantCode(t, err, codes.InvalidArgument, "dry-run")
}

func TestAdoptionMakesNoDirectory(t *testing.T) {
	o := options(t, 2)
	c := dial(t, newServer(t, o))
	// A controller that knows nothing of dry runs asks like this.
	req := adopt("pvc-1", gi, wire.DryRunNo)
	delete(req.Parameters, wire.ParamDryRun)
	_, err := c.CreateVolume(t.Context(), req)
	wantCode(t, err, codes.NotFound, "old/data", "none is made")
	req.Parameters[wire.ParamPool] = "ssd"
	_, err = c.CreateVolume(t.Context(), req)
	wantCode(t, err, codes.NotFound, "--pool ssd=")
	wantNoVolumes(t, o.Pools[wire.DefaultPool]...)
	for _, base := range o.Pools[wire.DefaultPool] {
		if _, err := os.Lstat(filepath.Join(base, "old")); !os.IsNotExist(err) {
			t.Errorf("%s has old: %v", base, err)
		}
	}
}

func TestTwoDirectoriesOfAPoolHaveIt(t *testing.T) {
	o := options(t, 3)
	bases := o.Pools[wire.DefaultPool]
	bring(t, bases[0], 10)
	bring(t, bases[2], 10)
	c := dial(t, newServer(t, o))
	for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
		_, err := c.CreateVolume(t.Context(), adopt("pvc-1", gi, dryRun))
		wantCode(t, err, codes.InvalidArgument, bases[0]+" and in "+bases[2])
	}
	wantNoVolumes(t, bases...)
}

// TestADirectoryThatCannotBeReadMayHaveIt: it has a pool.json of another pool, as
// that of a disk that was mounted in the wrong place.
func TestADirectoryThatCannotBeReadMayHaveIt(t *testing.T) {
	o := options(t, 2)
	bases := o.Pools[wire.DefaultPool]
	bring(t, bases[0], 10)
	other := options(t, 0)
	other.Pools["other"] = []string{bases[1]}
	s := newServer(t, other)
	create(t, dial(t, s), ask("pvc-9", gi, wire.ParamPool, "other"))
	must(t, s.Close())
	c := dial(t, newServer(t, o))
	for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
		_, err := c.CreateVolume(t.Context(), adopt("pvc-1", gi, dryRun))
		wantCode(t, err, codes.FailedPrecondition, "not the pool it should be", bases[1])
	}
	wantNoVolumes(t, bases[0])
}

// TestAnEmptyBaseMayBeADiskThatIsNotMounted: whoever knows the cluster is asked.
func TestAnEmptyBaseMayBeADiskThatIsNotMounted(t *testing.T) {
	base := t.TempDir()
	c := dial(t, newServer(t, node.Options{NodeName: "node-1", Pools: map[string][]string{wire.DefaultPool: {base}}}))
	_, err := c.CreateVolume(t.Context(), adopt("pvc-1", gi, wire.DryRunYes))
	var unused *wire.NewPoolError
	if !errors.As(wire.Error(err), &unused) || unused.Directory != base {
		t.Fatalf("%v does not ask for %s", err, base)
	}
	_, err = c.CreateVolume(wire.AttachNewPool(t.Context(), base, "but its disk is missing"), adopt("pvc-1", gi, wire.DryRunYes))
	wantCode(t, err, codes.FailedPrecondition, "its disk is missing")
	for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
		_, err = c.CreateVolume(wire.AttachNewPool(t.Context(), base, ""), adopt("pvc-1", gi, dryRun))
		wantCode(t, err, codes.NotFound)
	}
	if got := entries(t, base); len(got) > 0 {
		t.Errorf("it has %v", got)
	}
}

// TestWhatIsAdoptedDoesNotCountAgainstItself: a volume as large as what is in it fits
// where there is hardly any room for more.
func TestWhatIsAdoptedDoesNotCountAgainstItself(t *testing.T) {
	limits := node.Limits{Reserve: node.Reserve{Percent: 5}, Overcommit: 1}
	for name, tt := range map[string]struct {
		held, others int // MiB
		size         int64
		code         codes.Code
		words        []string
	}{
		"no more than it holds":    {held: 24, size: 24 * mi},
		"a little more":            {held: 24, size: 30 * mi},
		"all there is":             {held: 24, size: 37 * mi},
		"more than there is":       {held: 24, size: 60 * mi, code: codes.OutOfRange, words: []string{"in all"}},
		"others leave no room":     {held: 4, others: 24, size: 30 * mi, code: codes.ResourceExhausted, words: []string{"no room for 30Mi", "has room for 13Mi", "that the directory holds already"}},
		"all of a full disk":       {held: 39, size: 39 * mi},
		"no more, on a full disk":  {held: 8, others: 31, size: 8 * mi},
		"less, on a full disk":     {held: 8, others: 31, size: 1},
		"more, on a full disk":     {held: 8, others: 31, size: 9 * mi, code: codes.ResourceExhausted, words: []string{"no room for 9Mi", "has room for 8Mi"}},
		"others leave just enough": {held: 4, others: 20, size: 16 * mi},
	} {
		for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
			t.Run(name+" "+dryRun, func(t *testing.T) {
				base := disk(t, "40m")
				bring(t, base, tt.held*mi)
				must(t, os.WriteFile(filepath.Join(base, "others"), make([]byte, tt.others*mi+5000), 0o600))
				_, err := onDisks(t, limits, base).CreateVolume(t.Context(), adopt("pvc-1", tt.size, dryRun))
				wantCode(t, err, tt.code, tt.words...)
				if tt.code != codes.OK || dryRun == wire.DryRunYes {
					wantNoVolumes(t, base)
				}
			})
		}
	}
}

// TestWhatIsPromisedCountsAgainstWhatIsAdopted: the volumes of a pool are promised no
// more than there is, be they adopted or made.
func TestWhatIsPromisedCountsAgainstWhatIsAdopted(t *testing.T) {
	base := disk(t, "40m")
	bring(t, base, 10*mi)
	c := onDisks(t, node.Limits{Overcommit: 1}, base)
	create(t, c, ask("pvc-1", 25*mi))
	for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
		_, err := c.CreateVolume(t.Context(), adopt("pvc-2", 20*mi, dryRun))
		wantCode(t, err, codes.ResourceExhausted, "no room for 20Mi")
	}
	create(t, c, adopt("pvc-2", 15*mi, wire.DryRunNo))
	if available, _ := room(t, c, nil); available != 0 {
		t.Errorf("there is room for %d more", available)
	}
}

// TestWhatIsThereIsAdoptedWhateverWasPromised: refusing it would not give anybody a
// byte of it.
func TestWhatIsThereIsAdoptedWhateverWasPromised(t *testing.T) {
	for _, overcommit := range []float64{0, 0.5, 1} {
		base := disk(t, "40m")
		c := onDisks(t, node.Limits{Reserve: node.Reserve{Percent: 5}, Overcommit: overcommit}, base)
		create(t, c, ask("pvc-1", 18*mi))
		bring(t, base, 36*mi)
		if _, largest := room(t, c, map[string]string{wire.ParamPool: wire.DefaultPool, wire.ParamExisting: wire.ExistingAdopt}); largest < 36*mi {
			t.Errorf("overcommit %g: kube-scheduler is told of %d", overcommit, largest)
		}
		for _, dryRun := range []string{wire.DryRunYes, wire.DryRunNo} {
			create(t, c, adopt("pvc-2", 36*mi, dryRun))
		}
		if available, _ := room(t, c, nil); available >= 4*mi {
			t.Errorf("overcommit %g: there is room for %d more", overcommit, available)
		}
	}
}

// TestAClassThatAdoptsHasTheRoomOfItsDisks: what is on them may be what is adopted,
// and kube-scheduler must not keep the pod from all nodes.
func TestAClassThatAdoptsHasTheRoomOfItsDisks(t *testing.T) {
	base := disk(t, "40m")
	bring(t, base, 30*mi)
	c := onDisks(t, node.Limits{Overcommit: 1}, base)
	if _, largest := room(t, c, map[string]string{wire.ParamPool: wire.DefaultPool}); largest > 10*mi {
		t.Errorf("room for %d", largest)
	}
	if _, largest := room(t, c, map[string]string{wire.ParamPool: wire.DefaultPool, wire.ParamExisting: wire.ExistingAdopt}); largest != 40*mi {
		t.Errorf("room for %d", largest)
	}
}

func TestOneOfManyClaimsAdopts(t *testing.T) {
	o := options(t, 2)
	bring(t, o.Pools[wire.DefaultPool][0], 10)
	c := dial(t, newServer(t, o))
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		wins int
	)
	for n := range 12 {
		all.Go(func() {
			_, err := c.CreateVolume(t.Context(), adopt(pvName(n), gi, wire.DryRunNo))
			mu.Lock()
			defer mu.Unlock()
			switch status.Code(err) {
			case codes.OK:
				wins++
			case codes.InvalidArgument:
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if wins != 1 {
		t.Errorf("%d have adopted it", wins)
	}
}
