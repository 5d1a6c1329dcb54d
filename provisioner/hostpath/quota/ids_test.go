package quota

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/directory"
)

func TestParseRange(t *testing.T) {
	for s, want := range map[string]Range{
		"1-1":                   {1, 1},
		"1073741824-2147483647": DefaultRange,
		"1-4294967294":          {1, maxID},
	} {
		got, err := ParseRange(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("ParseRange(%q) = %v, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"": "write first-last", "5": "write first-last", "5-": `""`, "-5": `""`, "a-b": "no number", "0-5": `"0"`, "+1-2": `"+1"`,
		"5-4": "smaller", "1-4294967295": "4294967295", "1-2-3": `"2-3"`,
	} {
		if _, err := ParseRange(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseRange(%q) = %v, want %q", s, err, want)
		}
	}
}

func newHolders() *holders {
	return &holders{ids: map[directory.QuotaOwner]uint32{}, of: map[uint32]directory.QuotaOwner{}}
}

func owner(volume string) directory.QuotaOwner {
	return directory.QuotaOwner{Pool: "pool", Volume: volume}
}

func TestIDsAreHeldOnce(t *testing.T) {
	h, r := newHolders(), Range{10, 13}
	onDisk := map[uint32]bool{11: true}
	reserve := func(volume string, prefer uint32) uint32 {
		t.Helper()
		id, err := h.reserve(owner(volume), r, prefer, func(id uint32) (bool, error) { return onDisk[id], nil })
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	got := []uint32{reserve("a", 12), reserve("b", 12), reserve("c", 11), reserve("a", 12)}
	if diff := cmp.Diff([]uint32{12, 13, 10, 12}, got); diff != "" {
		// b goes on from what it prefers; c, past what is held, wraps around
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	_, err := h.reserve(owner("d"), r, 0, func(id uint32) (bool, error) { return onDisk[id], nil })
	var unsupported *directory.QuotaUnsupportedError
	if !errors.As(err, &unsupported) {
		t.Errorf("with none left: %v", err)
	}
	h.release(owner("b"))
	if id := reserve("d", 99); id != 13 {
		t.Errorf("id = %d, want the one that was released", id)
	}
	if h.hold(owner("e"), 12) {
		t.Error("an id was held twice")
	}
}

func TestAnErrorTakesNoID(t *testing.T) {
	h := newHolders()
	failed := errors.New("disk on fire")
	if _, err := h.reserve(owner("a"), DefaultRange, 0, func(uint32) (bool, error) { return false, failed }); !errors.Is(err, failed) {
		t.Errorf("reserve = %v", err)
	}
	if len(h.of)+len(h.ids) > 0 {
		t.Errorf("held: %v", h.of)
	}
}

func TestPoolsBeginApart(t *testing.T) {
	a, b := DefaultRange.start("a"), DefaultRange.start("b")
	if a == b || !DefaultRange.contains(a) || !DefaultRange.contains(b) || a != DefaultRange.start("a") {
		t.Errorf("starts: %d, %d", a, b)
	}
	if id := (Range{maxID, maxID}).start("a"); id != maxID {
		t.Errorf("start = %d", id)
	}
}
