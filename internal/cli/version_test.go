package cli

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersionNamesTheProgram(t *testing.T) {
	out := &bytes.Buffer{}
	cmd := NewCommand()
	cmd.SetArgs([]string{"version"})
	cmd.SetOut(out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "berth ") {
		t.Errorf("printed %q", out.String())
	}
}

func TestVersionNamesCommitAndDateOfTheBuild(t *testing.T) {
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "4db72dc"}, {Key: "vcs.time", Value: "2026-11-25T08:00:00Z"}}
	toolchain := runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
	for name, tt := range map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"a release":                {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: commit}, "berth v1.2.3 (commit 4db72dc, 2026-11-25T08:00:00Z, "},
		"go install":               {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "berth v1.2.3 ("},
		"no git":                   {debug.BuildInfo{}, "berth (devel) ("},
		"a checkout with a change": {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: append(commit, debug.BuildSetting{Key: "vcs.modified", Value: "true"})}, "berth (devel) (commit 4db72dc with changes, 2026-11-25T08:00:00Z, "},
	} {
		t.Run(name, func(t *testing.T) {
			if got := describeBuild(&tt.info); got != tt.want+toolchain {
				t.Errorf("got  %q\nwant %q", got, tt.want+toolchain)
			}
		})
	}
}
