package stuck_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

// outcomes are the lines that tell what came of an attempt, with the keys that they
// have besides the time.
var outcomes = map[string][]string{
	"Provisioned volume":                   {"claim", "volume", "class", "driver", "node", "duration"},
	"The claim is bound":                   {"claim", "volume", "class", "driver", "node", "duration"},
	"Deleted volume":                       {"claim", "volume", "class", "driver", "node", "duration"},
	"Provisioning failed":                  {"claim", "volume", "class", "driver", "duration", "error", "retryAfter"},
	"The claim's storage is unavailable":   {"claim", "volume", "class", "driver", "duration", "reason", "retryAfter"},
	"Gave the claim back to the scheduler": {"claim", "volume", "class", "driver", "node", "duration", "reason"},
	"The claim can't be provisioned until it or its class changes": {"claim", "volume", "class", "driver", "duration", "reason"},
}

// checkLog looks at all lines of a controller that did what it could about claims
// that can't be helped.
func checkLog(t *testing.T, output string) {
	t.Helper()
	seen := map[string]bool{}
	for text := range strings.SplitSeq(strings.TrimSpace(output), "\n") {
		line := map[string]any{}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Errorf("not JSON: %s", text)
			continue
		}
		if _, ok := line["stacktrace"]; ok {
			t.Errorf("a stack trace: %s", text)
		}
		message, _ := line["msg"].(string)
		if message == "Reconciler error" {
			t.Errorf("an error of the work is taken for one of the API server: %s", text)
		}
		seen[message] = true
		for _, key := range outcomes[message] {
			if value, ok := line[key].(string); !ok || value == "" {
				t.Errorf("%q lacks %s: %s", message, key, text)
			}
		}
	}
	for _, message := range []string{
		"Provisioned volume", "The claim is bound", "Provisioning failed", "The claim's storage is unavailable",
		"The claim can't be provisioned until it or its class changes",
	} {
		if !seen[message] {
			t.Errorf("there is no line %q; there are %q", message, slices.Sorted(maps.Keys(seen)))
		}
	}
}
