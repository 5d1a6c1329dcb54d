package hostpath

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
)

// adoptionCounts is how long what a node has said of a directory to be adopted
// counts, and so after how long one that is nowhere is looked for again.
const adoptionCounts = time.Minute

// finding is what a node has of a directory to be adopted.
type finding int

const (
	absent  finding = iota // nothing
	present                // the directory, and room for the volume
	begun                  // a volume that an earlier attempt has begun for this very claim
	unfit                  // something that can't be adopted, or not with what is asked for
	unknown                // nobody knows: the node can't say for now
)

// answer is what became of a node's being asked.
type answer struct {
	node    string
	finding finding
	base    string // the directory of the pool, if the node has said
	err     error  // why unfit or unknown
}

// answerOf reads what a node's server has said to a dry run.
func answerOf(node string, made *csi.Volume, err error) answer {
	a := answer{node: node, base: made.GetVolumeContext()[wire.ContextDirectory], err: err}
	switch code := wire.CodeOf(err); {
	case err == nil && made.GetVolumeId() != "":
		a.finding = begun
	case err == nil:
		a.finding = present
	case errors.Is(err, directory.ErrNoDirectory), errors.Is(err, wire.ErrNoPath):
		a.finding, a.err = absent, nil
	case isTyped(err), code == codes.ResourceExhausted, code == codes.OutOfRange:
		a.finding = unfit
	case code == codes.InvalidArgument:
		// It knows nothing of dry runs.
		a.finding, a.err = unknown, fmt.Errorf("its agent is older than this controller and can't say, update it: %w", err)
	default:
		a.finding = unknown
	}
	return a
}

// isTyped reports whether a node's server has said what is infeasible, rather than
// that it does not understand.
func isTyped(err error) bool {
	var infeasible *provisioner.InfeasibleError
	return errors.As(err, &infeasible)
}

// notAdopted says that nothing was adopted, nor begun.
type notAdopted struct{ error }

func (e notAdopted) Unwrap() error { return e.error }

// refuseAdoption returns an error by which the claim waits for somebody to bring, or
// take away, a directory or other things of a disk.
func refuseAdoption(err error) error {
	return &provisioner.UnavailableError{RetryAfter: adoptionCounts, Err: notAdopted{err}}
}

// decideAdoption returns the node whose directory the claim gets, by what all nodes
// have answered that could have it. Where an earlier attempt has begun the volume it
// goes on, whatever the others have. Otherwise there has to be one directory only,
// and every node must have said so: neither is one made anywhere, nor chosen among
// several.
func decideAdoption(answers []answer, pool, path string) (node string, _ error) {
	answers = slices.Clone(answers)
	slices.SortFunc(answers, func(a, b answer) int { return strings.Compare(a.node, b.node) })
	with := map[finding][]answer{}
	for _, a := range answers {
		with[a.finding] = append(with[a.finding], a)
	}
	there := slices.Concat(with[present], with[unfit])
	slices.SortFunc(there, func(a, b answer) int { return strings.Compare(a.node, b.node) })
	path = quoted(path)
	switch {
	case len(with[begun]) > 0:
		return with[begun][0].node, nil
	case len(there) > 1:
		return "", refuseAdoption(fmt.Errorf("StorageClass parameter existing: \"adopt\": %s is on several nodes: %s; keep one, or name its node in allowedTopologies",
			path, list(there, where)))
	case len(with[unknown]) > 0:
		return "", waitForAnswer(with[unknown], path)
	case len(there) == 1 && there[0].finding == unfit:
		return "", there[0].err
	case len(there) == 1:
		return there[0].node, nil
	case len(answers) == 0:
		return "", refuseAdoption(fmt.Errorf("StorageClass parameter existing: \"adopt\": no node with a berth agent may have %s: look at allowedTopologies and at the agents", path))
	}
	return "", refuseAdoption(fmt.Errorf("%w: StorageClass parameter existing: \"adopt\": pool %s has no directory %s on any node that may have it (%s), and none is made in its place: move it there, or correct pathPattern",
		directory.ErrNoDirectory, pool, path, list(answers, func(a answer) string { return a.node })))
}

// waitForAnswer says which nodes have to answer first. Nobody is told of nodes that
// were not asked yet.
func waitForAnswer(silent []answer, path string) error {
	wait, premature := adoptionCounts, true
	for _, a := range silent {
		after, ok := provisioner.RetryAfter(a.err)
		if !ok {
			after = retryUnavailable
		}
		wait, premature = min(wait, cmp.Or(after, retryUnavailable)), premature && provisioner.IsPremature(a.err)
	}
	return &provisioner.UnavailableError{RetryAfter: wait, Premature: premature, Err: fmt.Errorf(
		"StorageClass parameter existing: \"adopt\": waiting for all nodes that could have %s to answer, or to be left out by allowedTopologies: %s", path, list(silent, why))}
}

func where(a answer) string {
	if a.err != nil {
		return fmt.Sprintf("%s (%v)", a.node, a.err)
	}
	return fmt.Sprintf("%s (%s)", a.node, a.base)
}

// why gives the reason, which names its node itself as a rule.
func why(a answer) string {
	text := a.err.Error()
	if strings.HasPrefix(text, "node "+a.node) {
		return text
	}
	return fmt.Sprintf("node %s: %s", a.node, text)
}

// quoted quotes the beginning of a path, which may be of any length.
func quoted(path string) string {
	const most = 128
	if len(path) > most {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(path[:most], ""))
	}
	return fmt.Sprintf("%q", path)
}

// list joins answers as far as an event has room for them.
func list(answers []answer, text func(answer) string) string {
	var all []string
	for _, a := range answers {
		all = append(all, text(a))
	}
	return reasons(all)
}
