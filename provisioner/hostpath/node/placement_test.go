package node

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/berth-storage/berth/provisioner/directory"
)

const gi = 1 << 30

func TestRoomIsWhatIsFreeAndNotPromised(t *testing.T) {
	for name, tt := range map[string]struct {
		limits      Limits
		total, free uint64
		promised    int64 // none of it enforced
		room, most  int64
	}{
		"no limits":                          {Limits{}, 100, 40, 1000, 40, 100},
		"promised less than is used":         {Limits{Overcommit: 1}, 100, 40, 10, 40, 100},
		"promised more than is used":         {Limits{Overcommit: 1}, 100, 40, 90, 10, 100},
		"all promised":                       {Limits{Overcommit: 1}, 100, 100, 100, 0, 100},
		"more promised than there is":        {Limits{Overcommit: 1}, 100, 100, 500, 0, 100},
		"a reserve of bytes":                 {Limits{Reserve: Reserve{Bytes: 30}, Overcommit: 1}, 100, 40, 0, 10, 70},
		"a reserve in percent":               {Limits{Reserve: Reserve{Percent: 5}, Overcommit: 1}, 100, 100, 50, 45, 95},
		"a reserve that is not free":         {Limits{Reserve: Reserve{Bytes: 50}, Overcommit: 1}, 100, 40, 0, 0, 50},
		"a reserve larger than the disk":     {Limits{Reserve: Reserve{Bytes: 500}, Overcommit: 1}, 100, 40, 0, 0, 0},
		"promised twice":                     {Limits{Overcommit: 2}, 100, 100, 150, 50, 100},
		"promised twice, little free":        {Limits{Overcommit: 2}, 100, 7, 150, 7, 100},
		"half may be promised":               {Limits{Overcommit: 0.5}, 100, 100, 20, 30, 50},
		"a reserve, sizes do not count":      {Limits{Reserve: Reserve{Percent: 10}}, 100, 40, 1000, 30, 90},
		"a factor beyond all numbers":        {Limits{Overcommit: 1e300}, 100, 40, 1000, 40, 100},
		"a filesystem of more than an int64": {Limits{Overcommit: 1}, math.MaxUint64, math.MaxUint64, 0, maxSize, maxSize},
	} {
		space := directory.Space{Total: tt.total, Free: tt.free}
		if got := tt.limits.room(space, promises{all: tt.promised}); got != tt.room {
			t.Errorf("%s: room = %d, want %d", name, got, tt.room)
		}
		if got := tt.limits.most(space); got != tt.most {
			t.Errorf("%s: most = %d, want %d", name, got, tt.most)
		}
	}
}

// TestWhatOthersWroteIsNotPromised has a disk of 100 with 5 in reserve.
func TestWhatOthersWroteIsNotPromised(t *testing.T) {
	for name, tt := range map[string]struct {
		overcommit float64
		free       uint64
		promises   promises
		room       int64
	}{
		"60 of others":                                      {1, 40, promises{}, 35},
		"and one volume":                                    {1, 40, promises{all: 35, enforced: 35}, 0},
		"that has begun to write":                           {1, 20, promises{all: 35, enforced: 35, written: 20}, 0},
		"and is full":                                       {1, 5, promises{all: 35, enforced: 35, written: 35}, 0},
		"until others delete 30":                            {1, 50, promises{all: 35, enforced: 35, written: 20}, 30},
		"nobody else":                                       {1, 80, promises{all: 60, enforced: 60, written: 20}, 35},
		"a volume whose use is not known":                   {1, 40, promises{all: 35}, 35},
		"beside one whose use is":                           {1, 40, promises{all: 45, enforced: 10}, 25},
		"promised twice, 60 of others":                      {2, 40, promises{all: 50, enforced: 50}, 25},
		"promised twice, nobody else":                       {2, 70, promises{all: 150, enforced: 150, written: 30}, 45},
		"half may be promised":                              {0.5, 40, promises{all: 10, enforced: 10}, 25},
		"sizes do not count":                                {0, 40, promises{all: 500, enforced: 500}, 35},
		"a disk beyond all numbers, and so are its volumes": {1, math.MaxUint64, promises{all: maxSize, enforced: maxSize, written: maxSize}, 0},
	} {
		limits := Limits{Reserve: Reserve{Bytes: 5}, Overcommit: tt.overcommit}
		total := max(100, tt.free)
		if got := limits.room(directory.Space{Total: total, Free: tt.free}, tt.promises); got != tt.room {
			t.Errorf("%s: room = %d, want %d", name, got, tt.room)
		}
	}
}

func TestReserveIsReadAsItIsWritten(t *testing.T) {
	for s, want := range map[string]Reserve{
		"5%": {Percent: 5}, "0%": {}, "2.5%": {Percent: 2.5}, "10Gi": {Bytes: 10 * gi}, "1000000": {Bytes: 1000000},
	} {
		got, err := ParseReserve(s)
		if err != nil || got != want {
			t.Errorf("ParseReserve(%q) = %+v, %v", s, got, err)
		}
		if again, err := ParseReserve(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q", s, got)
		}
	}
	for _, s := range []string{"", "%", "-5%", "100%", "101%", "NaN%", "-1Gi", "lots", "5 %"} {
		if got, err := ParseReserve(s); err == nil {
			t.Errorf("ParseReserve(%q) = %+v", s, got)
		}
	}
}

// ledgerOf makes a ledger whose directories lie on the devices given.
func ledgerOf(devices ...uint64) (*ledger, []candidate) {
	l := &ledger{}
	var candidates []candidate
	for i, device := range devices {
		p := &place{Pool: directory.NewPool(nil, directory.Options{}), base: string(rune('a' + i)), pending: map[string]directory.Promise{}}
		p.device.Store(device)
		l.places = append(l.places, p)
		candidates = append(candidates, candidate{place: p, space: directory.Space{Total: 100, Free: 100, Device: device}})
	}
	return l, candidates
}

func TestNothingIsPromisedTwice(t *testing.T) {
	l, candidates := ledgerOf(1, 2, 2)
	limits := Limits{Overcommit: 1}
	var taken []string
	for _, want := range []struct {
		name string
		size int64
		base string // "" for none
	}{
		{"v1", 60, "a"}, {"v2", 60, "b"}, {"v3", 60, ""}, {"v4", 40, "a"}, {"v5", 30, "b"}, {"v6", 10, "b"}, {"v7", 1, ""},
	} {
		c, ok := l.take(limits, slices.Clone(candidates), wish{name: want.name, size: want.size})
		if ok != (want.base != "") || ok && c.base != want.base {
			t.Errorf("%s of %d went to %+v, %t, want %q", want.name, want.size, c.place, ok, want.base)
		}
		if ok {
			taken = append(taken, want.name)
		}
	}
	for _, p := range l.places {
		for _, name := range taken {
			l.give(p, name)
		}
	}
	if c, ok := l.take(limits, candidates, wish{name: "v8", size: 100}); !ok || c.base != "a" {
		t.Errorf("what was given back is not to be had again: %v", c)
	}
}

// TestLimitedVolumesAreNotPromisedWhatOthersWrote has several volumes made at once
// on a filesystem of 100 with 60 of others.
func TestLimitedVolumesAreNotPromisedWhatOthersWrote(t *testing.T) {
	for name, tt := range map[string]struct {
		limiting, limited bool
		want              int
	}{
		"can be limited":             {true, true, 2},
		"the filesystem can't":       {false, true, 5},
		"the class does not want to": {true, false, 5},
	} {
		l, candidates := ledgerOf(1)
		candidates[0].space.Free, candidates[0].limiting = 40, tt.limiting
		taken := 0
		for i := range 10 {
			if _, ok := l.take(Limits{Overcommit: 1}, slices.Clone(candidates), wish{name: fmt.Sprint(i), size: 20, limited: tt.limited}); ok {
				taken++
			}
		}
		if taken != tt.want {
			t.Errorf("%s: %d volumes of 20 were promised, want %d", name, taken, tt.want)
		}
	}
}

func TestVolumesGoWhereTheMostRoomIs(t *testing.T) {
	l, candidates := ledgerOf(1, 2, 3)
	candidates[0].space.Free, candidates[1].space.Free, candidates[2].space.Free = 50, 90, 70
	var order []string
	for _, volume := range []string{"v1", "v2", "v3", "v4", "v5"} {
		c, ok := l.take(Limits{Overcommit: 1}, slices.Clone(candidates), wish{name: volume, size: 30})
		if !ok {
			t.Fatal("no room")
		}
		order = append(order, c.base)
	}
	// Room: 50, 90, 70; then b has min(90, 70), as much as c, and goes by name; …
	if want := []string{"b", "b", "c", "c", "a"}; !slices.Equal(order, want) {
		t.Errorf("went to %v, want %v", order, want)
	}
}

func TestSizesDoNotCountWithoutAnOvercommit(t *testing.T) {
	l, candidates := ledgerOf(1)
	for range 3 {
		if _, ok := l.take(Limits{}, candidates, wish{name: "v", size: 1000}); !ok {
			t.Error("refused")
		}
	}
	candidates[0].space.Free = 0
	if _, ok := l.take(Limits{}, candidates, wish{name: "v", size: 1}); ok {
		t.Error("a volume was promised on a full disk")
	}
}
