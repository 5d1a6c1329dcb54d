package hostpath

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

func TestWhatANodeAnswersAboutADirectory(t *testing.T) {
	there := &csi.Volume{VolumeContext: map[string]string{wire.ContextDirectory: "/srv/berth"}}
	ours := &csi.Volume{VolumeId: "default/pvc-1/seal", VolumeContext: there.VolumeContext}
	refused := func(code codes.Code, err error) error { return wire.Error(wire.Status(code, err)) }
	for name, tt := range map[string]struct {
		made *csi.Volume
		err  error
		want finding
		word string
	}{
		"it has it":                         {there, nil, present, ""},
		"it has begun the volume":           {ours, nil, begun, ""},
		"it has nothing":                    {nil, refused(codes.NotFound, fmt.Errorf("pool default: %w", directory.ErrNoDirectory)), absent, ""},
		"it has no such volume":             {nil, refused(codes.FailedPrecondition, wire.ErrNoPath), absent, ""},
		"its agent is gone":                 {nil, fmt.Errorf("node n1: %w", ErrNoServer), unknown, "node n1"},
		"the path is another volume's":      {nil, refused(codes.InvalidArgument, provisioner.Infeasible("f", "v", "taken")), unfit, "taken"},
		"it is there, and there is no room": {nil, refused(codes.ResourceExhausted, errors.New("no room")), unfit, "no room"},
		"it is there, on too small a disk":  {nil, refused(codes.OutOfRange, errors.New("in all")), unfit, "in all"},
		"an agent that can only make one":   {nil, wire.Error(status.Error(codes.InvalidArgument, "there is no such parameter")), unknown, "older than this controller"},
		"it does not answer":                {nil, &provisioner.UnavailableError{RetryAfter: time.Second, Err: errors.New("refused")}, unknown, "refused"},
		"its disk is not mounted":           {nil, refused(codes.FailedPrecondition, directory.ErrWrongPool), unknown, "pool"},
		"the path is just being left":       {nil, refused(codes.Aborted, directory.ErrConflict), unknown, "taken"},
		"something else":                    {nil, refused(codes.Internal, errors.New("input/output error")), unknown, "input/output"},
	} {
		got := answerOf("n1", tt.made, tt.err)
		if got.finding != tt.want || (tt.word == "") != (got.err == nil) || got.err != nil && !strings.Contains(got.err.Error(), tt.word) {
			t.Errorf("%s: %+v, want %d with %q", name, got, tt.want, tt.word)
		}
	}
}

func TestWhichNodeAdopts(t *testing.T) {
	silent := &provisioner.UnavailableError{RetryAfter: 3 * time.Second, Err: errors.New("node n3: connection refused")}
	unasked := &provisioner.UnavailableError{RetryAfter: 2 * time.Second, Err: ErrNotAsked, Premature: true}
	taken := provisioner.Infeasible("StorageClass parameter pathPattern", "p", "taken")
	node := func(name string, f finding, err error) answer {
		return answer{node: name, finding: f, base: "/srv/" + name, err: err}
	}
	for name, tt := range map[string]struct {
		answers []answer
		node    string
		retry   time.Duration // 0 for an error that says nothing of it
		words   []string
		not     string
	}{
		"one has it":              {answers: []answer{node("n1", absent, nil), node("n2", present, nil)}, node: "n2"},
		"one has begun":           {answers: []answer{node("n1", present, nil), node("n2", begun, nil), node("n3", unknown, silent)}, node: "n2"},
		"begun, and not to be":    {answers: []answer{node("n1", unfit, taken), node("n2", begun, nil)}, node: "n2"},
		"none has it":             {answers: []answer{node("n2", absent, nil), node("n1", absent, nil)}, retry: time.Minute, words: []string{`existing: "adopt"`, `"a/b"`, "pool fast", "(n1; n2)", "move it there"}},
		"nobody to ask":           {retry: time.Minute, words: []string{"allowedTopologies", `"a/b"`}},
		"two have it":             {answers: []answer{node("n2", present, nil), node("n1", present, nil)}, retry: time.Minute, words: []string{`"a/b"`, "n1 (/srv/n1); n2 (/srv/n2)", "allowedTopologies"}},
		"one has it, one a link":  {answers: []answer{node("n2", present, nil), node("n1", unfit, taken)}, retry: time.Minute, words: []string{"n1 (", "taken", "n2 (/srv/n2)"}},
		"two, and one is silent":  {answers: []answer{node("n1", present, nil), node("n2", present, nil), node("n3", unknown, silent)}, retry: time.Minute, words: []string{"n1", "n2"}, not: "n3"},
		"one, and one is silent":  {answers: []answer{node("n1", present, nil), node("n3", unknown, silent)}, retry: 3 * time.Second, words: []string{"waiting", "node n3: connection refused", "allowedTopologies"}, not: "n1"},
		"none, and one is silent": {answers: []answer{node("n1", absent, nil), node("n3", unknown, silent)}, retry: 3 * time.Second, words: []string{"node n3"}},
		"unfit, and one silent":   {answers: []answer{node("n1", unfit, taken), node("n3", unknown, silent)}, retry: 3 * time.Second, words: []string{"node n3"}},
		"one does not know":       {answers: []answer{node("n1", present, nil), node("n2", unknown, errors.New("input/output error"))}, retry: retryUnavailable, words: []string{"node n2: input/output error"}},
		"one was not asked":       {answers: []answer{node("n1", present, nil), node("n2", unknown, unasked)}, retry: 2 * time.Second, words: []string{"n2"}},
		"only one that is taken":  {answers: []answer{node("n1", unfit, taken), node("n2", absent, nil)}, words: []string{"taken"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, long := decideAdoption(tt.answers, "fast", strings.Repeat("x", 3000)); long != nil && len(long.Error()) > 1024 {
				t.Errorf("an event has no room for %d bytes", len(long.Error()))
			}
			got, err := decideAdoption(tt.answers, "fast", "a/b")
			if got != tt.node || (err == nil) != (tt.node != "") {
				t.Fatalf("decideAdoption = %q, %v, want %q", got, err, tt.node)
			}
			if wait, _ := provisioner.RetryAfter(err); wait != tt.retry {
				t.Errorf("again after %s, want %s", wait, tt.retry)
			}
			for _, word := range tt.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not say %q", err, word)
				}
			}
			if tt.not != "" && strings.Contains(err.Error(), tt.not) {
				t.Errorf("%v says %q", err, tt.not)
			}
			if premature := provisioner.IsPremature(err); premature != (name == "one was not asked") {
				t.Errorf("premature: %t", premature)
			}
		})
	}
}
