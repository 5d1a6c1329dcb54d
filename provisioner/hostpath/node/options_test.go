package node_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

func TestBadOptionsAreRefused(t *testing.T) {
	pools := func(kv ...string) map[string][]string {
		m := map[string][]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = append(m[kv[i]], kv[i+1])
		}
		return m
	}
	for name, o := range map[string]node.Options{
		"no node":          {Pools: pools("a", "/a")},
		"no pool":          {NodeName: "n"},
		"no directory":     {Pools: map[string][]string{"a": nil}, NodeName: "n"},
		"relative":         {Pools: pools("a", "a"), NodeName: "n"},
		"root":             {Pools: pools("a", "/"), NodeName: "n"},
		"bad name":         {Pools: pools("A_", "/a"), NodeName: "n"},
		"twice":            {Pools: pools("a", "/a", "b", "/a"), NodeName: "n"},
		"twice in a pool":  {Pools: pools("a", "/a", "a", "/a"), NodeName: "n"},
		"nested":           {Pools: pools("a", "/a/b", "b", "/a"), NodeName: "n"},
		"nested in a pool": {Pools: pools("a", "/a", "a", "/a/b/c"), NodeName: "n"},
		"nested too":       {Pools: pools("a", "/a", "b", "/a/b/c"), NodeName: "n"},
		"overcommit":       {Pools: pools("a", "/a"), NodeName: "n", Limits: node.Limits{Overcommit: -1}},
	} {
		if _, err := node.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := node.New(node.Options{Pools: pools("a", "/a", "a", "/ab", "b", "/abc"), NodeName: "n"}); err != nil {
		t.Error(err)
	}
}

func TestParsePool(t *testing.T) {
	for s, want := range map[string][2]string{
		"default=/var/lib/berth": {"default", "/var/lib/berth"},
		"ssd=/mnt/a=b":           {"ssd", "/mnt/a=b"},
		"":                       {}, "ssd": {}, "=/mnt": {}, "ssd=": {}, "ssd=mnt": {}, "ssd=/": {}, "ssd=/mnt/": {}, "ssd=/mnt/../etc": {},
		"SSD=/mnt": {}, "a b=/mnt": {}, "a/b=/mnt": {},
	} {
		name, path, err := node.ParsePool(s)
		if (err == nil) != (want[0] != "") {
			t.Errorf("ParsePool(%q): %v", s, err)
		} else if err == nil && (name != want[0] || path != want[1]) {
			t.Errorf("ParsePool(%q) = %q, %q", s, name, path)
		}
	}
	pools, err := node.ParsePools([]string{"a=/1", "b=/2", "a=/3"})
	must(t, err)
	if diff := cmp.Diff(map[string][]string{"a": {"/1", "/3"}, "b": {"/2"}}, pools); diff != "" {
		t.Error(diff)
	}
}
