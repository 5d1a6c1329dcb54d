package cli

import (
	"bytes"
	"strings"
	"testing"
)

// TestFlagsThatCannotWorkAreRefused: each refusal names the flag to change.
func TestFlagsThatCannotWorkAreRefused(t *testing.T) {
	alone := []string{"--leader-elect=false"}
	pool := append([]string{"--node-name=n", "--pool=default=/srv/berth"}, alone...)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no storage at all":                 {alone, "--pool"},
		"a pool without a node":             {append([]string{"--pool=default=/srv/berth"}, alone...), "--node-name"},
		"an unknown way to bind":            {append([]string{"--binding=maybe"}, pool...), `--binding="maybe"`},
		"no workers":                        {append([]string{"--workers=0"}, pool...), "--workers=0"},
		"no time between sweeps":            {append([]string{"--orphan-interval=0s"}, pool...), "--orphan-interval=0s"},
		"no grace":                          {append([]string{"--bind-grace=0s"}, pool...), "--bind-grace=0s"},
		"an election without a namespace":   {[]string{"--node-name=n", "--pool=default=/srv/berth"}, "--leader-elect-namespace"},
		"a pool that names no directory":    {append([]string{"--node-name=n", "--pool=ssd"}, alone...), "--pool=ssd"},
		"a pool with a relative directory":  {append([]string{"--node-name=n", "--pool=ssd=srv"}, alone...), "--pool=ssd=srv"},
		"a pool that is the root directory": {append([]string{"--node-name=n", "--pool=ssd=/"}, alone...), "--pool=ssd=/"},
		"a pool that is given twice":        {append([]string{"--pool=default=/srv/other"}, pool...), `pool "default" is given twice`},
		"an argument that is no flag":       {append([]string{"now"}, pool...), "now"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			cmd := NewCommand()
			cmd.SetArgs(append([]string{"controller"}, tt.args...))
			cmd.SetOut(&bytes.Buffer{})
			cmd.SetErr(&bytes.Buffer{})
			err := cmd.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that names %s", err, tt.want)
			}
		})
	}
}

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
