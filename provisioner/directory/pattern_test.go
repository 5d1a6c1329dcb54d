package directory_test

import (
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

var variables = directory.Variables{
	Namespace: "ns",
	Claim:     "claim",
	Volume:    "pvc-1",
	Labels: map[string]string{
		"app": "db", "app.kubernetes.io/name": "pg", "up": "..", "dot": ".", "empty": "", "berth": ".Berth",
		"long": strings.Repeat("x", 10_000), "slash": "a/b", "escaped": "a%2Fb",
	},
	Annotations: map[string]string{
		"path": "../../etc/passwd", "nul": "a\x00b", "newline": "a\nb", "unicode": "größe-日本", "broken": "a\xffb", "bidi": "a\u202eb", "c1": "a\u0085b",
	},
}

func TestPatternExpands(t *testing.T) {
	for pattern, want := range map[string]string{
		directory.DefaultPattern:       "ns-claim-pvc-1",
		"${pvc.namespace}/${pvc.name}": "ns/claim",
		"plain":                        "plain",
		"a b/$c/{d}/$":                 "a b/$c/{d}/$",
		"${pvc.labels['app']}":         "db",
		"x/${pvc.labels['app.kubernetes.io/name']}/y":                    "x/pg/y",
		"${pvc.labels['slash']}":                                         "a%2Fb",
		"${pvc.labels['escaped']}":                                       "a%252Fb",
		"${pvc.annotations['path']}":                                     "..%2F..%2Fetc%2Fpasswd",
		"${pvc.annotations['nul']}":                                      "a%00b",
		"${pvc.annotations['newline']}":                                  "a%0Ab",
		"${pvc.annotations['unicode']}":                                  "größe-日本",
		"${pvc.annotations['bidi']}":                                     "a%E2%80%AEb",
		"${pvc.annotations['c1']}":                                       "a%C2%85b",
		"${pvc.labels['empty']}x":                                        "x",
		"x${pvc.labels['up']}":                                           "x..",
		"100%/${pvc.name}":                                               "100%/claim",
		"${pvc.labels['dot']}${pvc.labels['dot']}${pvc.labels['dot']}/a": ".../a",
	} {
		p, err := directory.ParsePattern(pattern)
		if err != nil {
			t.Errorf("ParsePattern(%q): %v", pattern, err)
			continue
		}
		got, err := p.Expand(variables)
		if err != nil || got != want {
			t.Errorf("Expand(%q) = %q, %v, want %q", pattern, got, err, want)
		}
	}
}

func TestPatternIsRefusedWhenParsed(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                                 "empty",
		"/abs":                             "relative",
		"/":                                "relative",
		"a/":                               "slash",
		"a//b":                             "is empty",
		"..":                               "not a name",
		"a/../b":                           "not a name",
		"a/./b":                            "not a name",
		"../../etc":                        "not a name",
		".berth":                           "reserved",
		"a/.BERTH/b":                       "reserved",
		"a\x00b":                           "control",
		"a\nb":                             "control",
		"a\xffb":                           "UTF-8",
		strings.Repeat("x", 256):           "256 bytes",
		"${":                               "closing brace",
		"${pvc.name":                       "closing brace",
		"${}":                              "${pvc.namespace}, ${pvc.name}, ${pv.name}",
		"${pvc.uid}":                       "unknown variable \"${pvc.uid}\"",
		"${.PVC.name}":                     "unknown variable",
		"${ pvc.name }":                    "unknown variable",
		"${pvc.labels}":                    "unknown variable",
		"${pvc.labels['']}":                "does not name a key",
		"${pvc.labels['a]}":                "does not name a key",
		"${pvc.labels['a b']}":             "does not name a key",
		"${pvc.labels['a'/../'b']}":        "does not name a key",
		"${pvc.annotations['a/b/c']}":      "does not name a key",
		"${pvc.name}/..":                   "not a name",
		"${pvc.name}//${pvc.name}":         "is empty",
		"${" + strings.Repeat("x", 10_000): "closing brace",
	} {
		_, err := directory.ParsePattern(pattern)
		wantInfeasible(t, "ParsePattern", pattern, err, "StorageClass parameter pathPattern", want)
	}
}

func TestPatternIsRefusedWhenExpanded(t *testing.T) {
	for pattern, want := range map[string]string{
		"${pvc.labels['up']}":                                              "not a name",
		"a/${pvc.labels['up']}/b":                                          "not a name",
		"${pvc.labels['dot']}${pvc.labels['dot']}":                         "not a name",
		".${pvc.labels['dot']}":                                            "not a name",
		"${pvc.labels['dot']}":                                             "not a name",
		"${pvc.labels['empty']}":                                           "is empty",
		"a/${pvc.labels['empty']}/b":                                       "is empty",
		"${pvc.labels['berth']}":                                           "reserved",
		"${pvc.labels['missing']}":                                         "${pvc.labels['missing']}",
		"${pvc.annotations['missing']}":                                    "${pvc.annotations['missing']}",
		"${pvc.labels['long']}":                                            "bytes long",
		strings.Repeat("a/", 1600) + "b":                                   "3201 bytes",
		strings.Repeat("x", 250) + "${pvc.name}-":                          "256 bytes",
		"${pvc.annotations['broken']}":                                     "not valid UTF-8",
		strings.Repeat("${pvc.annotations['path']}/", 200) + "x":           "bytes long",
		"x/" + strings.Repeat("${pvc.labels['up']}", 1) + "/y/../z":        "not a name",
		"${pvc.labels['long']}" + strings.Repeat("/a", 10) + "/${pv.name}": "bytes long",
	} {
		p, err := directory.ParsePattern(pattern)
		if err == nil {
			_, err = p.Expand(variables)
		}
		wantInfeasible(t, "Expand", pattern, err, "StorageClass parameter pathPattern", want)
	}
}

func wantInfeasible(t *testing.T, op, value string, err error, words ...string) {
	t.Helper()
	if !provisioner.IsInfeasible(err) {
		t.Errorf("%s(%.60q) = %v, want an infeasible error", op, value, err)
		return
	}
	if len(err.Error()) > 1024 {
		t.Errorf("%s(%.60q): the error has %d bytes, an event has room for 1024", op, value, len(err.Error()))
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s(%.60q) = %v, want it to say %q", op, value, err, word)
		}
	}
}

func TestEscapingIsInjective(t *testing.T) {
	p, err := directory.ParsePattern("${pvc.annotations['v']}")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	alphabet := []string{"", "/", "%", "2", "F", "f", "\x00", "\u0085", "é"}
	for _, a := range alphabet {
		for _, b := range alphabet {
			for _, c := range alphabet {
				value := "x" + a + b + c
				got, err := p.Expand(directory.Variables{Annotations: map[string]string{"v": value}})
				if err != nil {
					t.Fatal(err)
				}
				if other, ok := seen[got]; ok && other != value {
					t.Fatalf("%q and %q both become %q", other, value, got)
				}
				seen[got] = value
			}
		}
	}
}

func TestCheckPath(t *testing.T) {
	for p, ok := range map[string]bool{
		"a": true, "a/b": true, ".a": true, "...": true, "a b": true, ".berthx": true,
		"": false, "/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/..": false,
		".berth": false, ".Berth/trash": false, "a/.BERTH": false, "a\x00": false, "a\x7f": false, "\xff": false,
		strings.Repeat("x", 255): true, strings.Repeat("x", 256): false,
	} {
		if err := directory.CheckPath(p); (err == nil) != ok {
			t.Errorf("CheckPath(%q) = %v", p, err)
		}
	}
}

func FuzzExpandNeverEscapes(f *testing.F) {
	for _, pattern := range []string{directory.DefaultPattern, "${pvc.labels['a']}/${pvc.annotations['b']}", "x/${pvc.name}/..", "${"} {
		for _, value := range []string{"a", "..", "../x", "/", "", ".berth", "%2e%2e", "\x00", "\xff", ".", "a/../../b"} {
			f.Add(pattern, value, value)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, one, two string) {
		p, err := directory.ParsePattern(pattern)
		if err != nil {
			if !provisioner.IsInfeasible(err) {
				t.Fatalf("ParsePattern: %v", err)
			}
			return
		}
		got, err := p.Expand(directory.Variables{
			Namespace: one, Claim: two, Volume: "pvc-1",
			Labels: map[string]string{"a": one}, Annotations: map[string]string{"b": two},
		})
		if err != nil {
			if !provisioner.IsInfeasible(err) {
				t.Fatalf("Expand: %v", err)
			}
			return
		}
		if err := directory.CheckPath(got); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		if path.Clean(got) != got || path.IsAbs(got) || strings.HasPrefix(path.Join("/base", got)+"/", "/base/.berth/") ||
			!strings.HasPrefix(path.Join("/base", got), "/base/") {
			t.Fatalf("%q escapes", got)
		}
		if diff := cmp.Diff(strings.Count(got, "/"), literalSlashes(pattern)); diff != "" {
			t.Fatalf("a value changed the depth of %q to %q", pattern, got)
		}
	})
}

// literalSlashes counts the slashes of a pattern outside of its variables.
func literalSlashes(pattern string) int {
	n := 0
	for {
		before, rest, found := strings.Cut(pattern, "${")
		n += strings.Count(before, "/")
		if !found {
			return n
		}
		_, pattern, _ = strings.Cut(rest, "}")
	}
}
