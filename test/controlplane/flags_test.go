package controlplane

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOverrideReplacesDefault(t *testing.T) {
	tests := map[string]struct {
		defaults, overrides, want []string
	}{
		"nothing to override": {
			defaults: []string{"--a=1"},
			want:     []string{"--a=1"},
		},
		"same name": {
			defaults:  []string{"--a=1", "--b=2"},
			overrides: []string{"--a=3"},
			want:      []string{"--b=2", "--a=3"},
		},
		"a list is replaced, not added to": {
			defaults:  []string{"--controllers=*"},
			overrides: []string{"--controllers=one", "--controllers=two"},
			want:      []string{"--controllers=one", "--controllers=two"},
		},
		"without a value": {
			defaults:  []string{"--leader-elect=false"},
			overrides: []string{"--leader-elect"},
			want:      []string{"--leader-elect"},
		},
		"a prefix is another name": {
			defaults:  []string{"--kube-api-qps=1"},
			overrides: []string{"--kube-api=2"},
			want:      []string{"--kube-api-qps=1", "--kube-api=2"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := mergeFlags(tt.defaults, tt.overrides)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mergeFlags (-want +got):\n%s", diff)
			}
		})
	}
}

func TestArgumentWithoutDashesIsRefused(t *testing.T) {
	for _, flag := range []string{"", "--", "v=2", "-v=2", "2"} {
		if err := checkFlags([]string{"--ok=1", flag}); err == nil {
			t.Errorf("checkFlags(%q) succeeded", flag)
		}
	}
}
