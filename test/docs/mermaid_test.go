package docs

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDiagramsCanBeParsed has Mermaid itself, from npm, read the diagrams.
// It is skipped where npm is missing; BERTH_REQUIRE_NPM=1 makes that a failure.
func TestDiagramsCanBeParsed(t *testing.T) {
	r := checkout(t)
	var pages, diagrams []string
	for _, p := range r.pages {
		for _, b := range p.blocks {
			if b.language == "mermaid" {
				pages, diagrams = append(pages, p.path), append(diagrams, b.code)
			}
		}
	}
	const broken = "flowchart LR\n  a[\"no end --> b"
	errors := parseDiagrams(t, append(diagrams, broken))
	for i, page := range pages {
		if errors[i] != nil {
			t.Errorf("%s: %s\n%s", page, *errors[i], diagrams[i])
		}
	}
	if errors[len(diagrams)] == nil {
		t.Error("the parser takes a broken diagram for a good one")
	}
	t.Logf("parsed %d diagrams", len(diagrams))
}

func parseDiagrams(t *testing.T, diagrams []string) []*string {
	t.Helper()
	dir := installMermaid(t)
	input, err := json.Marshal(diagrams)
	if err != nil {
		t.Fatal(err)
	}
	node := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "parse.js"))
	node.Stdin = bytes.NewReader(input)
	node.Stderr = os.Stderr
	output, err := node.Output()
	if err != nil {
		t.Fatalf("parse.js: %v", err)
	}
	var errors []*string
	if err := json.Unmarshal(output, &errors); err != nil || len(errors) != len(diagrams) {
		t.Fatalf("parse.js printed %q: %v", output, err)
	}
	return errors
}

// installMermaid installs the packages of package-lock.json into bin/, once for
// each state of that file, and returns the folder.
func installMermaid(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		if os.Getenv("BERTH_REQUIRE_NPM") != "" {
			t.Fatalf("%v (Debian: apt-get install npm)", err)
		}
		t.Skipf("%v: diagrams are not checked", err)
	}
	dir := filepath.Join(checkout(t).root, "bin", "mermaid")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	same := true
	for _, name := range []string{"package.json", "parse.js", "package-lock.json"} {
		same = copyIfChanged(t, filepath.Join("mermaid", name), filepath.Join(dir, name)) && same
	}
	if isDirectory(dir, "node_modules") && same {
		return dir
	}
	install := exec.CommandContext(t.Context(), "npm", "ci", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	if output, err := install.CombinedOutput(); err != nil {
		_ = os.RemoveAll(filepath.Join(dir, "node_modules"))
		t.Fatalf("npm ci: %v\n%s", err, output)
	}
	return dir
}

// copyIfChanged copies a file, and reports whether it was there already.
func copyIfChanged(t *testing.T, from, to string) bool {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if old, err := os.ReadFile(to); err == nil && bytes.Equal(old, content) {
		return true
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return false
}
