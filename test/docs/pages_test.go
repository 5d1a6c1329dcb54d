package docs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	tables "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"

	"github.com/berth-storage/berth/test/controlplane"
)

// page is a Markdown file of the repository.
type page struct {
	path     string // in the repository, with slashes
	anchors  map[string]bool
	links    []string
	snippets []string // inline code
	blocks   []block
	tables   []table
}

// block is fenced code.
type block struct {
	heading  string // the last one above
	anchor   string // of that heading
	language string
	code     string
}

// table is a table's rows, as the inline code and the text of each cell.
type table struct {
	heading string
	rows    [][]cell
}

type cell struct {
	text     string
	snippets []string
}

// repository is the checkout: its folder, and what git knows in it.
type repository struct {
	root  string
	files map[string]bool
	pages []*page
}

var load = sync.OnceValues(readRepository)

// checkout returns the repository with all its pages.
func checkout(t *testing.T) *repository {
	t.Helper()
	r, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readRepository() (*repository, error) {
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return nil, err
	}
	// Also what is not committed yet, other than what is ignored.
	list, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	r := &repository{root: root, files: map[string]bool{}}
	for path := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		source, err := os.ReadFile(filepath.Join(root, path))
		if os.IsNotExist(err) || isDirectory(root, path) || r.files[path] {
			continue // removed and not committed yet, a link to a folder, or in conflict
		}
		if err != nil {
			return nil, err
		}
		r.files[path] = true
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			r.files[dir] = true
		}
		if strings.HasSuffix(path, ".md") {
			r.pages = append(r.pages, parsePage(path, source))
		}
	}
	return r, nil
}

func isDirectory(root, path string) bool {
	info, err := os.Stat(filepath.Join(root, path))
	return err == nil && info.IsDir()
}

// page returns the page at a path, or nil.
func (r *repository) page(path string) *page {
	for _, p := range r.pages {
		if p.path == path {
			return p
		}
	}
	return nil
}

var markdown = goldmark.New(goldmark.WithExtensions(extension.GFM))

// parsePage reads a page as GitHub does.
func parsePage(path string, source []byte) *page {
	p := &page{path: path, anchors: map[string]bool{}}
	heading, anchor, used := "", "", map[string]int{}
	walk := func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Heading:
			heading = plain(n, source)
			anchor = anchorOf(heading)
			if used[anchor]++; used[anchor] > 1 {
				anchor = fmt.Sprintf("%s-%d", anchor, used[anchor]-1)
			}
			p.anchors[anchor] = true
		case *ast.Link:
			p.links = append(p.links, string(n.Destination))
		case *ast.Image:
			p.links = append(p.links, string(n.Destination))
		case *ast.CodeSpan:
			p.snippets = append(p.snippets, plain(n, source))
		case *ast.FencedCodeBlock:
			p.blocks = append(p.blocks, block{heading: heading, anchor: anchor, language: string(n.Language(source)), code: string(n.Lines().Value(source))})
		case *tables.Table:
			p.tables = append(p.tables, table{heading: heading, rows: readRows(n, source)})
		}
		return ast.WalkContinue, nil
	}
	if err := ast.Walk(markdown.Parser().Parse(text.NewReader(source)), walk); err != nil {
		panic(err) // walk returns none
	}
	return p
}

func readRows(n ast.Node, source []byte) [][]cell {
	var rows [][]cell
	for row := n.FirstChild(); row != nil; row = row.NextSibling() {
		if _, header := row.(*tables.TableHeader); header {
			continue
		}
		var cells []cell
		for c := row.FirstChild(); c != nil; c = c.NextSibling() {
			one := cell{text: plain(c, source)}
			for inline := c.FirstChild(); inline != nil; inline = inline.NextSibling() {
				if _, code := inline.(*ast.CodeSpan); code {
					one.snippets = append(one.snippets, plain(inline, source))
				}
			}
			cells = append(cells, one)
		}
		rows = append(rows, cells)
	}
	return rows
}

// plain returns the text of a node without its markup.
func plain(n ast.Node, source []byte) string {
	var b bytes.Buffer
	for child := n.FirstChild(); child != nil; child = child.NextSibling() {
		switch child := child.(type) {
		case *ast.Text:
			b.Write(child.Value(source))
			if child.SoftLineBreak() {
				b.WriteByte(' ')
			}
		case *ast.String:
			b.Write(child.Value)
		default:
			b.WriteString(plain(child, source))
		}
	}
	return b.String()
}

// anchorOf returns what GitHub makes of a heading.
func anchorOf(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r), unicode.IsMark(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}

func TestAnchorsAreThoseOfGitHub(t *testing.T) {
	p := parsePage("x.md", []byte("# One node, *for* now\n## `berth` & co.\n## A\n### A\n\nSee [it](y.md#a) and `make test`.\n"))
	for _, want := range []string{"one-node-for-now", "berth--co", "a", "a-1"} {
		if !p.anchors[want] {
			t.Errorf("no anchor %q in %v", want, p.anchors)
		}
	}
	if len(p.links) != 1 || len(p.snippets) != 2 {
		t.Errorf("links %v, snippets %v", p.links, p.snippets)
	}
}
