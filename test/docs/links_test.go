package docs

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
)

// line is an anchor that GitHub gives to lines of a file that is not Markdown.
var line = regexp.MustCompile(`^L\d+(-L\d+)?$`)

// TestLinksLeadToWhatIsThere: files that git knows, and headings that exist.
// Links to other hosts are only read, not followed.
func TestLinksLeadToWhatIsThere(t *testing.T) {
	r := checkout(t)
	for _, p := range r.pages {
		for _, link := range p.links {
			if why := r.deadLink(p, link); why != "" {
				t.Errorf("%s: link %q: %s", p.path, link, why)
			}
		}
	}
}

// deadLink returns why a link leads nowhere, or "".
func (r *repository) deadLink(from *page, link string) string {
	u, err := url.Parse(link)
	switch {
	case err != nil:
		return err.Error()
	case u.Scheme == "https" && u.Host != "", u.Scheme == "mailto":
		return ""
	case u.Scheme != "" || u.Host != "":
		return "write https:// or a path in the repository"
	case strings.HasPrefix(u.Path, "/"):
		return "write a path relative to the page"
	}
	target := from.path
	if u.Path != "" {
		target = path.Join(path.Dir(from.path), u.Path)
	}
	to := r.page(target)
	switch {
	case target != "." && !r.files[target]:
		return "no such file"
	case u.Fragment == "" || to == nil && line.MatchString(u.Fragment):
		return ""
	case to == nil || !to.anchors[u.Fragment]:
		return "no such heading in " + target
	}
	return ""
}

func TestDeadLinksAreNoticed(t *testing.T) {
	there := parsePage("docs/a.md", []byte("# Here\n"))
	r := &repository{files: map[string]bool{"docs": true, "docs/a.md": true, "main.go": true}, pages: []*page{there}}
	for link, dead := range map[string]bool{
		"a.md":               false,
		"#here":              false,
		"../docs/a.md#here":  false,
		"..":                 false,
		"../main.go#L3":      false,
		"https://go.dev/x#y": false,
		"#there":             true,
		"b.md":               true,
		"../main.go#here":    true,
		"/docs/a.md":         true,
		"http://go.dev":      true,
		"../../a.md":         true,
	} {
		if got := r.deadLink(there, link); (got != "") != dead {
			t.Errorf("%q: %q, want dead %v", link, got, dead)
		}
	}
}

// TestEveryPageIsLinked: a page that nothing leads to is not found.
func TestEveryPageIsLinked(t *testing.T) {
	r := checkout(t)
	linked := map[string]bool{"README.md": true}
	for _, p := range r.pages {
		for _, link := range p.links {
			if u, err := url.Parse(link); err == nil && u.Host == "" && u.Path != "" {
				if target := path.Join(path.Dir(p.path), u.Path); target != p.path {
					linked[target] = true
				}
			}
		}
	}
	for _, p := range r.pages {
		if strings.HasPrefix(p.path, "docs/") && !linked[p.path] {
			t.Errorf("no page links to %s", p.path)
		}
	}
}
