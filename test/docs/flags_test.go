package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-storage/berth/internal/cli"
)

// strangers are flags in the documentation that belong to other programs.
var strangers = map[string]string{
	"--set":                       "helm",
	"--set-json":                  "helm",
	"--set-string":                "helm",
	"--values":                    "helm",
	"--reuse-values":              "helm",
	"--wait":                      "helm",
	"--namespace":                 "helm, kubectl",
	"--create-namespace":          "helm",
	"--dry-run":                   "helm, kubectl",
	"--as":                        "kubectl",
	"--version":                   "helm",
	"--kube-api-burst":            "kube-controller-manager too",
	"--unsafe-no-fsync":           "etcd",
	"--no-install-recommends":     "apt-get",
	"--recursive":                 "cosign",
	"--all":                       "skopeo",
	"--certificate-identity":      "cosign",
	"--certificate-oidc-issuer":   "cosign",
	"--enable-aggregator-routing": "kube-apiserver",
}

// flagName is a flag at the beginning of inline code, or anywhere in a command.
var flagName = regexp.MustCompile(`(?:^|\s)(--[a-z][a-z0-9-]*)(…?)`)

func command(t *testing.T, name string) *cobra.Command {
	t.Helper()
	cmd, _, err := cli.NewCommand().Find([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestFlagsAreDocumentedWithTheirDefaults reads the tables below headings that
// begin with "Flags of berth controller" and "Flags of berth agent". "--zap-…"
// stands for all flags that begin so.
func TestFlagsAreDocumentedWithTheirDefaults(t *testing.T) {
	for _, name := range []string{"controller", "agent"} {
		t.Run(name, func(t *testing.T) {
			flags := command(t, name).Flags()
			documented := map[string]bool{}
			for _, p := range checkout(t).pages {
				for _, row := range flagRows(p, name) {
					for _, flag := range documentedFlags(t, p, flags, row) {
						documented[flag] = true
					}
				}
			}
			flags.VisitAll(func(f *pflag.Flag) {
				if !documented[f.Name] && !f.Hidden && f.Name != "help" {
					t.Errorf("--%s is in no table of flags of berth %s", f.Name, name)
				}
			})
		})
	}
}

// flagRows returns the rows of a page's tables of a command's flags.
func flagRows(p *page, command string) [][]cell {
	var rows [][]cell
	for _, table := range p.tables {
		if strings.HasPrefix(table.heading, "Flags of berth "+command) {
			rows = append(rows, table.rows...)
		}
	}
	return rows
}

// documentedFlags returns the names of the flags that a row describes, and
// compares the defaults that it gives for them.
func documentedFlags(t *testing.T, p *page, flags *pflag.FlagSet, row []cell) []string {
	t.Helper()
	var names []string
	for _, snippet := range row[0].snippets {
		match := flagName.FindStringSubmatch(snippet)
		if match == nil {
			t.Errorf("%s: %q: write flags in full, with --", p.path, snippet)
			continue
		}
		name := strings.TrimPrefix(match[1], "--")
		if match[2] != "" {
			flags.VisitAll(func(f *pflag.Flag) {
				if strings.HasPrefix(f.Name, name) {
					names = append(names, f.Name)
				}
			})
			continue
		}
		if flags.Lookup(name) == nil {
			t.Errorf("%s: there is no flag --%s", p.path, name)
			continue
		}
		names = append(names, name)
	}
	defaults := strings.Split(row[1].text, ", ")
	if len(defaults) != len(names) || len(names) != len(row[0].snippets) {
		return names
	}
	for i, name := range names {
		if said, is := defaults[i], flags.Lookup(name).DefValue; !sameDefault(said, is) {
			t.Errorf("%s: the default of --%s is %q, not %q", p.path, name, is, said)
		}
	}
	return names
}

// sameDefault compares a default with what a table says. Where a flag has none,
// or zero stands for one, words may say what happens then.
func sameDefault(said, is string) bool {
	if slices.Contains([]string{"", "[]", "0"}, is) {
		return true
	}
	if a, err := time.ParseDuration(said); err == nil {
		b, err := time.ParseDuration(is)
		return err == nil && a == b
	}
	return said == is
}

func TestDefaultsAreCompared(t *testing.T) {
	for _, tt := range []struct {
		said, is string
		same     bool
	}{
		{"10m", "10m0s", true},
		{"500ms", "500ms", true},
		{"false", "false", true},
		{"the pod's", "", true},
		{"none", "[]", true},
		{"5s", "10s", false},
		{"1h", "true", false},
		{"assist", "cluster", false},
	} {
		if got := sameDefault(tt.said, tt.is); got != tt.same {
			t.Errorf("said %q, is %q: %v", tt.said, tt.is, got)
		}
	}
}

// TestNoFlagIsMadeUp reads inline code that begins with a flag, and fenced
// commands that run berth.
func TestNoFlagIsMadeUp(t *testing.T) {
	known := map[string]bool{}
	for _, name := range []string{"controller", "agent", "version"} {
		command(t, name).Flags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
	}
	isKnown := func(flag string, prefix bool) bool {
		if _, stranger := strangers[flag]; stranger || known[flag] {
			return true
		}
		for name := range known {
			if prefix && strings.HasPrefix(name, flag) {
				return true
			}
		}
		return false
	}
	for _, p := range checkout(t).pages {
		if p.path == "CHANGELOG.md" {
			continue // it may tell of flags that are gone
		}
		for _, snippet := range p.snippets {
			if match := flagName.FindStringSubmatch(snippet); match != nil && strings.HasPrefix(snippet, "--") && !isKnown(match[1], match[2] != "") {
				t.Errorf("%s: no flag %s; if it is another program's, name it in flags_test.go", p.path, match[1])
			}
		}
		for _, b := range p.blocks {
			for _, line := range commandLines(b.code) {
				_, arguments, runs := strings.Cut(line, "berth controller ")
				if !runs {
					_, arguments, runs = strings.Cut(line, "berth agent ")
				}
				for _, match := range flagName.FindAllStringSubmatch(" "+arguments, -1) {
					if runs && !known[match[1]] {
						t.Errorf("%s: no flag %s in %q", p.path, match[1], line)
					}
				}
			}
		}
	}
}

// commandLines returns the lines of a script, those that are continued in one.
func commandLines(code string) []string {
	return strings.Split(strings.ReplaceAll(code, "\\\n", " "), "\n")
}
