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
		"a pool without a node":             {append([]string{"--pool=default=/srv/berth"}, alone...), "--node-name"},
		"an unknown way to bind":            {append([]string{"--binding=maybe"}, pool...), `--binding="maybe"`},
		"no workers":                        {append([]string{"--workers=0"}, pool...), "--workers=0"},
		"no time between sweeps":            {append([]string{"--orphan-interval=0s"}, pool...), "--orphan-interval=0s"},
		"no grace":                          {append([]string{"--bind-grace=0s"}, pool...), "--bind-grace=0s"},
		"an election without a namespace":   {[]string{"--node-name=n", "--pool=default=/srv/berth"}, "--leader-elect-namespace"},
		"a pool that names no directory":    {append([]string{"--node-name=n", "--pool=ssd"}, alone...), "--pool=ssd"},
		"a pool with a relative directory":  {append([]string{"--node-name=n", "--pool=ssd=srv"}, alone...), "--pool=ssd=srv"},
		"a pool that is the root directory": {append([]string{"--node-name=n", "--pool=ssd=/"}, alone...), "--pool=ssd=/"},
		"a reserve that is no size":         {append([]string{"--pool-reserve=much"}, pool...), "--pool-reserve"},
		"a reserve of all there is":         {append([]string{"--pool-reserve=100%"}, pool...), "--pool-reserve"},
		"an overcommit below nothing":       {append([]string{"--pool-overcommit=-1"}, pool...), "--pool-overcommit=-1"},
		"agents and pools of this process":  {append([]string{"--agent-service=agents", "--agent-namespace=ns"}, pool...), "--agent-service"},
		"agents in no namespace":            {append([]string{"--agent-service=agents"}, alone...), "--agent-namespace"},
		"agents on no port":                 {append([]string{"--agent-service=agents", "--agent-namespace=ns", "--agent-port=-1"}, alone...), "--agent-port=-1"},
		"no time for agents":                {append([]string{"--agent-service=agents", "--agent-namespace=ns", "--agent-timeout=0s"}, alone...), "--agent-timeout=0s"},
		"half a certificate":                {append([]string{"--agent-service=agents", "--agent-namespace=ns", "--tls-cert-file=a"}, alone...), "--tls-key-file"},
		"a certificate for nobody":          {append([]string{"--tls-cert-file=a", "--tls-key-file=b", "--tls-ca-file=c"}, pool...), "--agent-service"},
		"no time between looks":             {append([]string{"--storage-capacity-interval=0s"}, pool...), "--storage-capacity=false"},
		"no grace for unreachable nodes":    {append([]string{"--storage-capacity-outage-grace=0s"}, pool...), "--storage-capacity-outage-grace=0s"},
		"no writes of capacity":             {append([]string{"--storage-capacity-qps=0"}, pool...), "--storage-capacity-qps=0"},
		"no grace for deleted nodes":        {append([]string{"--lost-node-grace=0s"}, pool...), "--lost-node-grace=0s"},
		"metrics that are secure, maybe":    {append([]string{"--metrics-secure=maybe"}, pool...), `--metrics-secure="maybe"`},
		"half a certificate for metrics":    {append([]string{"--metrics-bind-address=:8443", "--metrics-cert-file=a"}, pool...), "--metrics-key-file"},
		"a certificate for plain metrics":   {append([]string{"--metrics-cert-file=a", "--metrics-key-file=b"}, pool...), "--metrics-secure=true"},
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
