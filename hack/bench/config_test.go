package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func parse(env map[string]string, args ...string) (config, error) {
	return parseConfig(args, func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}, io.Discard)
}

func TestConfigDefaults(t *testing.T) {
	got, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := config{claims: 600, libraryClaims: 300, runs: runNames, rounds: 1, single: 50}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestConfigFromEnvironmentUnlessFlagsSay(t *testing.T) {
	got, err := parse(map[string]string{
		"N": "20", "RUNS": "bare,berth", "RATE": "2.5", "ROUNDS": "3", "KCM_QPS": "1000",
		"SINGLE": "0", "DELETIONS": "7", "BENCH_JSON": "out.json", "BOUND_TIMEOUT": "1m", "LIBRARY_N": "",
	}, "-n=30")
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		claims: 30, libraryClaims: 300, runs: []string{"bare", "berth"}, rounds: 3, rate: 2.5, kcmQPS: 1000,
		deletions: 7, json: "out.json", timeout: time.Minute,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestConfigRefusesNonsense(t *testing.T) {
	for variable, value := range map[string]string{
		"N": "many", "RUNS": "berth,fast", "RATE": "-1", "ROUNDS": "0", "DELETIONS": "-5", "LIBRARY_N": "0", "BOUND_TIMEOUT": "soon",
	} {
		_, err := parse(map[string]string{variable: value})
		if err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%s=%s: error %v does not name the variable", variable, value, err)
		}
	}
	if _, err := parse(nil, "extra"); err == nil {
		t.Error("an argument that is no flag was ignored")
	}
}

func TestEveryFlagHasAnEnvironmentVariable(t *testing.T) {
	var usage strings.Builder
	_, _ = parseConfig([]string{"-help"}, func(string) (string, bool) { return "", false }, &usage)
	if strings.Contains(usage.String(), "()") {
		t.Errorf("a flag has no variable:\n%s", usage.String())
	}
	for _, variable := range environment {
		if !strings.Contains(usage.String(), "("+variable+")") {
			t.Errorf("%s sets no flag", variable)
		}
	}
}

func TestRunOrderTurnsAroundEverySecondRound(t *testing.T) {
	got := runOrder([]string{"a", "b"}, 3)
	want := []step{{"a", 1}, {"b", 1}, {"b", 2}, {"a", 2}, {"a", 3}, {"b", 3}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(step{})); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}
