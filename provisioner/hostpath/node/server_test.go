package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// disk mounts a filesystem in memory of that size, released for use as a pool.
func disk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.Mkdir(filepath.Join(dir, ".berth"), 0o700))
	return dir
}

const mi = 1 << 20

func onDisks(t *testing.T, limits node.Limits, disks ...string) csi.ControllerClient {
	t.Helper()
	return dial(t, newServer(t, node.Options{
		NodeName: "node-1", Pools: map[string][]string{wire.DefaultPool: disks}, Limits: limits,
	}))
}

func room(t *testing.T, c csi.ControllerClient, parameters map[string]string) (available, largest int64) {
	t.Helper()
	resp, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: parameters})
	must(t, err)
	return resp.GetAvailableCapacity(), resp.GetMaximumVolumeSize().GetValue()
}

func TestVolumesSpreadOverTheDirectoriesOfAPool(t *testing.T) {
	big, small := disk(t, "40m"), disk(t, "24m")
	c := onDisks(t, node.Limits{Overcommit: 1}, small, big)
	var where []string
	for n := range 6 {
		v := create(t, c, ask(pvName(n), 10*mi))
		if _, err := os.Stat(directoryOf(v)); err != nil {
			t.Error(err)
		}
		where = append(where, map[string]string{big: "big", small: "small"}[v.GetVolumeContext()[wire.ContextDirectory]])
	}
	// 40 and 24, less what the filesystems need for themselves.
	if want := []string{"big", "big", "small", "big", "small"}; !slices.Equal(where[:5], want) {
		t.Errorf("volumes went to %v, want %v", where, want)
	}
}

func TestAFullPoolIsExhaustedAndSaysByWhat(t *testing.T) {
	c := onDisks(t, node.DefaultLimits, disk(t, "40m"))
	create(t, c, ask("pvc-1", 30*mi))
	_, err := c.CreateVolume(t.Context(), ask("pvc-2", 20*mi))
	wantCode(t, err, codes.ResourceExhausted, "pool default on node node-1 has no room for 20Mi", "40Mi", "reserve")
	_, err = c.CreateVolume(t.Context(), ask("pvc-3", 40*mi))
	wantCode(t, err, codes.OutOfRange, "has 38Mi in all")
	if available, largest := room(t, c, nil); available != largest || available < 7*mi || available > 8*mi {
		t.Errorf("room for %d, at most %d", available, largest)
	}
	remove(t, c, wire.NewVolumeID("default", "pvc-1", "uid-pvc-1", "pvc-1").String())
	create(t, c, ask("pvc-2", 20*mi))
}

func TestPromisesOutliveTheServer(t *testing.T) {
	o := node.Options{NodeName: "node-1", Limits: node.Limits{Overcommit: 1}, Pools: map[string][]string{wire.DefaultPool: {disk(t, "40m")}}}
	first := newServer(t, o)
	create(t, dial(t, first), ask("pvc-1", 30*mi))
	must(t, first.Close())
	c := dial(t, newServer(t, o))
	_, err := c.CreateVolume(t.Context(), ask("pvc-2", 20*mi))
	wantCode(t, err, codes.ResourceExhausted)
}

// TestPoolsOnOneFilesystemShareItsRoom: also before the other pool is used.
func TestPoolsOnOneFilesystemShareItsRoom(t *testing.T) {
	base := disk(t, "40m")
	must(t, os.Remove(filepath.Join(base, ".berth")))
	o := node.Options{NodeName: "node-1", Limits: node.Limits{Overcommit: 1}, Pools: map[string][]string{}}
	for _, pool := range []string{"default", "ssd"} {
		must(t, os.MkdirAll(filepath.Join(base, pool, ".berth"), 0o700))
		o.Pools[pool] = []string{filepath.Join(base, pool)}
	}
	s := newServer(t, o)
	create(t, dial(t, s), ask("pvc-1", 30*mi, wire.ParamPool, "ssd"))
	must(t, s.Close())
	c := dial(t, newServer(t, o))
	_, err := c.CreateVolume(t.Context(), ask("pvc-2", 20*mi))
	wantCode(t, err, codes.ResourceExhausted)
	available, _ := room(t, c, nil)
	if ofPool, _ := room(t, c, map[string]string{wire.ParamPool: "ssd"}); ofPool != available || available > 10*mi {
		t.Errorf("room for %d, in one pool for %d: they have it in common", available, ofPool)
	}
}

func TestVolumesMadeAtOnceAreNotPromisedMoreThanThereIs(t *testing.T) {
	c := onDisks(t, node.Limits{Overcommit: 1}, disk(t, "40m"), disk(t, "40m"))
	var group sync.WaitGroup
	made := make(chan string, 40)
	for n := range 40 {
		group.Go(func() {
			if _, err := c.CreateVolume(t.Context(), ask(pvName(n), 4*mi)); err == nil {
				made <- pvName(n)
			}
		})
	}
	group.Wait()
	// 40 MiB less a few pages for markers and directories: nine on each disk, and a
	// tenth if the filesystem is empty when it is asked for.
	if got := len(made); got < 18 || got > 20 {
		t.Errorf("%d volumes of 4 MiB were made on two disks of 40 MiB", got)
	}
}

func TestADirectoryThatIsAwayCostsOnlyItsOwnVolumes(t *testing.T) {
	o := options(t, 2)
	c := dial(t, newServer(t, o))
	there := create(t, c, ask("pvc-1", mi))
	away := there.GetVolumeContext()[wire.ContextDirectory]
	must(t, os.Rename(away, away+"-away"))
	here := create(t, c, ask("pvc-2", mi))
	if here.GetVolumeContext()[wire.ContextDirectory] == away {
		t.Error("a volume was made where nothing is")
	}
	remove(t, c, here.GetVolumeId())
	_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: there.GetVolumeId()})
	wantCode(t, err, codes.FailedPrecondition, away)
	must(t, os.Rename(away+"-away", away))
	remove(t, c, there.GetVolumeId())
}

func TestSameNameIsTheSameVolume(t *testing.T) {
	c := dial(t, newServer(t, options(t, 2)))
	first := create(t, c, ask("pvc-1", gi, wire.ParamPath, "a"))
	again := create(t, c, ask("pvc-1", gi, wire.ParamPath, "b"))
	if diff := cmp.Diff(first.GetVolumeContext(), again.GetVolumeContext()); diff != "" || first.GetVolumeId() != again.GetVolumeId() {
		t.Errorf("ids %s, %s; %s", first.GetVolumeId(), again.GetVolumeId(), diff)
	}
	_, err := c.CreateVolume(t.Context(), ask("pvc-1", 2*gi))
	wantCode(t, err, codes.AlreadyExists, "there is one of 1Gi, not of 2Gi")
	other := ask("pvc-1", gi)
	other.Parameters[wire.ParamClaimUID] = "uid-other"
	_, err = c.CreateVolume(t.Context(), other)
	wantCode(t, err, codes.AlreadyExists, "another UID")
}

func TestANameIsOfOnePool(t *testing.T) {
	o := options(t, 1)
	o.Pools["ssd"] = []string{released(t), released(t)}
	s := newServer(t, o)
	c := dial(t, s)
	first := create(t, c, ask("pvc-1", mi, wire.ParamPool, "ssd"))
	const refusal = "create volume pvc-1: there is one in pool ssd, not in pool default"
	for _, path := range []string{"a", ""} {
		_, err := c.CreateVolume(t.Context(), ask("pvc-1", mi, wire.ParamPath, path))
		wantCode(t, err, codes.AlreadyExists, refusal)
	}
	// It is known after a restart too.
	must(t, s.Close())
	c = dial(t, newServer(t, o))
	_, err := c.CreateVolume(t.Context(), ask("pvc-1", mi))
	wantCode(t, err, codes.AlreadyExists, refusal)
	remove(t, c, first.GetVolumeId())
	create(t, c, ask("pvc-1", mi))
}

func TestAnEmptyPathAsksForWhatIsThere(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	_, err := c.CreateVolume(t.Context(), ask("pvc-1", gi, wire.ParamPath, ""))
	wantCode(t, err, codes.FailedPrecondition)
	if !errors.Is(wire.Error(err), wire.ErrNoPath) {
		t.Errorf("%v does not say so", err)
	}
	first := create(t, c, ask("pvc-1", gi, wire.ParamPath, "a/b"))
	if again := create(t, c, ask("pvc-1", gi, wire.ParamPath, "")); again.GetVolumeId() != first.GetVolumeId() {
		t.Errorf("another volume: %v", again)
	}
}

func TestRequestsThatCannotBeMetAreRefused(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	for name, tt := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		word   string
	}{
		"no name":       {func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name"},
		"no capability": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "volume_capabilities"},
		"block":         {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessType = &csi.VolumeCapability_Block{} }, codes.InvalidArgument, "block"},
		"shared": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0].AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}, codes.InvalidArgument, "shared"},
		"content":            {func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, codes.InvalidArgument, "content"},
		"mutable":            {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument, "mutable"},
		"negative":           {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, codes.OutOfRange, "capacity_range"},
		"limit too small":    {func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 }, codes.OutOfRange, "capacity_range"},
		"larger than a disk": {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 1 << 60 }, codes.OutOfRange, "in all"},
		"unknown parameter":  {set("fsType", "ext4"), codes.InvalidArgument, "known are"},
		"unknown pool":       {set(wire.ParamPool, "ssd"), codes.ResourceExhausted, "--pool ssd="},
		"path upwards":       {set(wire.ParamPath, "../x"), codes.InvalidArgument, "not a name"},
		"path absolute":      {set(wire.ParamPath, "/etc"), codes.InvalidArgument, "empty"},
		"path of Berth":      {set(wire.ParamPath, ".berth/volumes"), codes.InvalidArgument, "reserved"},
		"path with NUL":      {set(wire.ParamPath, "a\x00b"), codes.InvalidArgument, "control character"},
		"onDelete":           {set(wire.ParamOnDelete, "shred"), codes.InvalidArgument, "delete, archive, retain"},
		"existing":           {set(wire.ParamExisting, "yes"), codes.InvalidArgument, "refuse, adopt"},
		"mode":               {set(wire.ParamMode, "10000"), codes.InvalidArgument, "7777"},
		"uid":                {set(wire.ParamUID, "4294967295"), codes.InvalidArgument, "4294967294"},
		"quota":              {set(wire.ParamQuota, "hard"), codes.InvalidArgument, "auto, required, none"},
		"quota required":     {set(wire.ParamQuota, "required"), codes.InvalidArgument, "quota"},
	} {
		t.Run(name, func(t *testing.T) {
			req := ask("pvc-1", gi)
			tt.change(req)
			_, err := c.CreateVolume(t.Context(), req)
			wantCode(t, err, tt.code, tt.word)
		})
	}
}

func set(name, value string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.Parameters[name] = value }
}

// TestNamesThatAreNoObjectNamesAreKeptUnderADigest: CSI allows nearly any.
func TestNamesThatAreNoObjectNamesAreKeptUnderADigest(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	seen := map[string]bool{}
	for _, name := range []string{"PVC-1", "../../etc", "a/b", "ü", strings.Repeat("n", 2000), " "} {
		req := ask("x", gi)
		req.Name, req.Parameters = name, nil
		v := create(t, c, req)
		if again := create(t, c, req); again.GetVolumeId() != v.GetVolumeId() || seen[v.GetVolumeId()] {
			t.Errorf("%q has the id %s, then %s", name, v.GetVolumeId(), again.GetVolumeId())
		}
		seen[v.GetVolumeId()] = true
		remove(t, c, v.GetVolumeId())
	}
}

func TestANewDirectoryNeedsAWord(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	c := dial(t, newServer(t, node.Options{NodeName: "node-1", Pools: map[string][]string{wire.DefaultPool: {first, second}}}))
	_, err := c.CreateVolume(t.Context(), ask("pvc-1", gi))
	wantCode(t, err, codes.FailedPrecondition, "not initialised")
	var unused *wire.NewPoolError
	if !errors.As(wire.Error(err), &unused) || unused.Directory != first {
		t.Fatalf("%v does not ask for %s", err, first)
	}
	// The disk of the first is missing, the second may be used.
	ctx := wire.AttachNewPool(t.Context(), first, "but its disk is missing")
	_, err = c.CreateVolume(ctx, ask("pvc-1", gi))
	if !errors.As(wire.Error(err), &unused) || unused.Directory != second {
		t.Fatalf("%v does not ask for %s", err, second)
	}
	resp, err := c.CreateVolume(wire.AttachNewPool(ctx, second, ""), ask("pvc-1", gi))
	must(t, err)
	if got := resp.GetVolume().GetVolumeContext()[wire.ContextDirectory]; got != second {
		t.Errorf("the volume is in %s, want %s", got, second)
	}
	if got := entries(t, first); len(got) > 0 {
		t.Errorf("in the directory that was refused: %v", got)
	}
	before, _ := room(t, c, nil)
	if before <= 0 {
		t.Error("no room")
	}
	_, err = c.CreateVolume(wire.AttachNewPool(t.Context(), second, "but its disk is missing"), ask("pvc-2", gi))
	if !errors.As(wire.Error(err), &unused) && err != nil {
		t.Errorf("a directory in use was refused: %v", err)
	}
}

func TestARefusedPoolSaysWhy(t *testing.T) {
	base := t.TempDir()
	c := dial(t, newServer(t, node.Options{NodeName: "node-1", Pools: map[string][]string{wire.DefaultPool: {base}}}))
	_, err := c.CreateVolume(wire.AttachNewPool(t.Context(), base, "but Kubernetes has volumes there"), ask("pvc-1", gi))
	wantCode(t, err, codes.FailedPrecondition, "pool default: the base is empty and not initialised as a pool: but Kubernetes has volumes there")
	if available, _ := room(t, c, nil); available != 0 {
		t.Errorf("a disk that is not mounted has room for %d", available)
	}
}

func TestAdoptionGoesWhereTheDirectoryIs(t *testing.T) {
	o := options(t, 3)
	holder := o.Pools[wire.DefaultPool][2]
	must(t, os.MkdirAll(filepath.Join(holder, "old/data"), 0o755))
	c := dial(t, newServer(t, o))
	v := create(t, c, ask("pvc-1", gi, wire.ParamPath, "old/data", wire.ParamExisting, wire.ExistingAdopt))
	if got := v.GetVolumeContext()[wire.ContextDirectory]; got != holder {
		t.Errorf("the volume is in %s, the directory in %s", got, holder)
	}
}

func TestListingGoesOnWhereItStopped(t *testing.T) {
	o := options(t, 2)
	s := newServer(t, o)
	c := dial(t, s)
	var want []string
	for n := range 9 {
		create(t, c, ask(pvName(n), gi))
		want = append(want, pvName(n))
	}
	for _, most := range []int32{1, 2, 4, 9, 0} {
		var got []string
		for token := ""; ; {
			page, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: most, StartingToken: token})
			must(t, err)
			if most > 0 && len(page.GetEntries()) > int(most) {
				t.Errorf("%d entries, at most %d were asked for", len(page.GetEntries()), most)
			}
			for _, e := range page.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeContext()[wire.ContextVolume])
			}
			if token = page.GetNextToken(); token == "" {
				break
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d at a time: %s", most, diff)
		}
	}
	// The last volume of a page goes away, another comes.
	page, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 3})
	must(t, err)
	for _, e := range page.GetEntries() {
		remove(t, c, e.GetVolume().GetVolumeId())
	}
	create(t, c, ask("pvc-9999", gi))
	rest, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: page.GetNextToken()})
	must(t, err)
	if got := len(rest.GetEntries()); got != 7 {
		t.Errorf("%d entries after the first page, want 7", got)
	}
}

func TestWhatCanNotBeListedComesLast(t *testing.T) {
	o := options(t, 2)
	s := newServer(t, o)
	c := dial(t, s)
	for n := range 4 {
		create(t, c, ask(pvName(n), gi))
	}
	first := o.Pools[wire.DefaultPool][0]
	all, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	must(t, err)
	must(t, os.Rename(first, first+"-away"))
	t.Cleanup(func() { must(t, os.Rename(first+"-away", first)) })
	readable := 0
	for _, e := range all.GetEntries() {
		if e.GetVolume().GetVolumeContext()[wire.ContextDirectory] != first {
			readable++
		}
	}
	page, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if readable > 0 {
		must(t, err)
		if got := len(page.GetEntries()); got != readable || page.GetNextToken() == "" {
			t.Errorf("%d entries, next %q, want %d and an error to come", got, page.GetNextToken(), readable)
		}
		_, err = c.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: page.GetNextToken()})
	}
	wantCode(t, err, codes.FailedPrecondition, first)
}

func TestHealthTellsWhatIsWrong(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	v := create(t, c, ask("pvc-1", gi))
	health := func() []*csi.VolumeHealth_VolumeHealthEntry {
		t.Helper()
		resp, err := c.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: v.GetVolumeId()})
		must(t, err)
		return resp.GetVolumeHealth().GetHealthStatuses()
	}
	if got := health(); len(got) > 0 {
		t.Errorf("health = %v", got)
	}
	must(t, os.Remove(directoryOf(v)))
	if got := health(); len(got) != 1 || got[0].GetReason() != "DirectoryGone" || got[0].GetStatus() != csi.VolumeHealthErrorType_DATA_LOSS {
		t.Errorf("health = %v", got)
	}
	must(t, os.WriteFile(directoryOf(v), nil, 0o600))
	if got := health(); len(got) != 1 || got[0].GetReason() != "NotADirectory" {
		t.Errorf("health = %v", got)
	}
}

func TestTakingBackSparesDataAndOtherPlaces(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	v := create(t, c, ask("pvc-1", gi))
	back := func(source string) error {
		_, err := c.DeleteVolume(wire.AttachIfEmpty(t.Context(), source), &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()})
		return wire.Error(err)
	}
	data := filepath.Join(directoryOf(v), "data")
	must(t, os.WriteFile(data, nil, 0o600))
	if err := back(directoryOf(v)); !errors.Is(err, provisioner.ErrNotEmpty) {
		t.Errorf("taking back data: %v", err)
	}
	must(t, os.Remove(data))
	must(t, back("/elsewhere"+directoryOf(v)))
	if _, err := os.Stat(directoryOf(v)); err != nil {
		t.Errorf("it was somewhere else that was to be taken back: %v", err)
	}
	must(t, back(directoryOf(v)))
	if _, err := os.Stat(directoryOf(v)); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestOneCallAVolumeAtATime(t *testing.T) {
	c := dial(t, newServer(t, options(t, 1)))
	var group sync.WaitGroup
	outcomes := make(chan error, 50)
	for range 50 {
		group.Go(func() {
			_, err := c.CreateVolume(t.Context(), ask("pvc-1", gi))
			outcomes <- err
		})
	}
	group.Wait()
	close(outcomes)
	made := 0
	for err := range outcomes {
		if err == nil {
			made++
			continue
		}
		wantCode(t, err, codes.Aborted, "under way")
	}
	if made == 0 {
		t.Error("nobody made it")
	}
}

func TestStatsTakeNothingIntoUse(t *testing.T) {
	o := options(t, 1)
	leader, waiting := newServer(t, o), newServer(t, o)
	for _, d := range waiting.Stats(t.Context()) {
		if d.Err != nil || d.Opened || d.Total == 0 {
			t.Errorf("%+v", d)
		}
	}
	c := dial(t, leader)
	create(t, c, ask("pvc-1", gi))
	for _, d := range leader.Stats(t.Context()) {
		if d.Err != nil || !d.Opened || d.Volumes != 1 || d.Promised != gi || d.Pool != wire.DefaultPool || d.Directory != o.Pools[wire.DefaultPool][0] {
			t.Errorf("%+v", d)
		}
	}
	for u, err := range leader.Usage(t.Context()) {
		must(t, err)
		if u.Volume != "pvc-1" || u.Enforced {
			t.Errorf("%+v", u)
		}
	}
}
