package stuck_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const page = "../../docs/stuck-claims.md"

// event is a line of what kubectl describe shows, without its age.
type event struct{ kind, reason, from, message string }

// shown is what the page says that a command prints.
type shown struct {
	command string // without "kubectl"
	events  []event
}

// readPage returns what is shown below each heading of the page that shows
// anything.
func readPage(t *testing.T) map[string][]shown {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]shown{}
	heading, block := "", []string(nil)
	inside := false
	for line := range strings.SplitSeq(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			if inside && len(block) > 0 && strings.HasPrefix(block[0], "$ kubectl describe ") {
				all[heading] = append(all[heading], shown{strings.TrimPrefix(block[0], "$ kubectl "), parseEvents(t, block[1:])})
			}
			inside, block = !inside, nil
		case inside:
			block = append(block, line)
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimPrefix(line, "## ")
		}
	}
	return all
}

var columns = regexp.MustCompile(` {2,}`)

// parseEvents reads the events of what kubectl describe prints.
func parseEvents(t *testing.T, lines []string) []event {
	t.Helper()
	start := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Events:") })
	if start < 0 {
		t.Fatalf("no events in\n%s", strings.Join(lines, "\n"))
	}
	var events []event
	for _, line := range lines[start+1:] {
		parts := columns.Split(strings.TrimSpace(line), 5)
		if len(parts) < 5 || parts[0] == "Type" || strings.HasPrefix(parts[0], "----") {
			continue
		}
		events = append(events, event{parts[0], parts[1], parts[3], parts[4]})
	}
	return events
}

// placeholder stands for something that differs from cluster to cluster.
var placeholder = regexp.MustCompile(`<[a-z ]+>`)

// matches reports whether have is what the page shows as e.
func (e event) matches(have event) bool {
	if e.kind != have.kind || e.reason != have.reason || e.from != have.from {
		return false
	}
	var pattern strings.Builder
	rest := e.message
	for _, at := range placeholder.FindAllString(e.message, -1) {
		before, after, _ := strings.Cut(rest, at)
		pattern.WriteString(regexp.QuoteMeta(before) + ".+?")
		rest = after
	}
	return regexp.MustCompile("^" + pattern.String() + regexp.QuoteMeta(rest) + "$").MatchString(have.message)
}

// compare returns how what is printed differs from what the page shows: every
// event it shows has to be there, and no other warning.
func (s shown) compare(have []event) error {
	for _, want := range s.events {
		if !slices.ContainsFunc(have, want.matches) {
			return fmt.Errorf("not there: %+v", want)
		}
	}
	for _, e := range have {
		if e.kind == "Warning" && !slices.ContainsFunc(s.events, func(want event) bool { return want.matches(e) }) {
			return fmt.Errorf("not on the page: %+v", e)
		}
	}
	return nil
}
