package hostpath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/hostpath/wire"
	"github.com/berth-storage/berth/provisioner/request"
)

// adopt makes a volume of the directory that is there for a claim, on whichever node
// that is: kube-scheduler sees where the volume is, and has the pod follow.
func (d *Driver) adopt(ctx context.Context, a attempt) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	volume, err := d.adoptAnywhere(ctx, a)
	var nothing notAdopted
	if errors.As(err, &nothing) {
		return nil, controller.ProvisioningFinished, err
	}
	return volume, stateOf(err), err
}

func (d *Driver) adoptAnywhere(ctx context.Context, a attempt) (*corev1.PersistentVolume, error) {
	if d.only != "" {
		return d.provisionOn(ctx, d.only, a)
	}
	node, err := d.findToAdopt(ctx, a)
	if err != nil {
		return nil, d.adoptionRefused(err, a)
	}
	volume, err := d.provisionOn(ctx, node, a)
	if !errors.Is(err, request.ErrNamed) { // nor is the directory another one since
		d.found.forget(a.PVC.UID)
	}
	return volume, err
}

// findToAdopt asks the nodes that could have the directory, all at once, unless they
// have said so lately.
func (d *Driver) findToAdopt(ctx context.Context, a attempt) (node string, _ error) {
	path, pathErr := a.params.Path(a.ProvisionOptions)
	if pathErr != nil {
		path = "" // a volume that was begun before counts
	}
	names, err := d.couldHave(ctx, a)
	if err != nil {
		return "", err
	}
	req := a.params.request(a.ProvisionOptions, path)
	req.Parameters[wire.ParamDryRun] = wire.DryRunYes
	key := question{class: a.StorageClass.UID, path: path, size: req.GetCapacityRange().GetRequiredBytes()}
	known := d.found.recall(a.PVC.UID, key)
	answers := make([]answer, len(names))
	group := errgroup.Group{}
	group.SetLimit(nodesAtOnce)
	for i, name := range names {
		if before, ok := known[name]; ok {
			answers[i] = before
			continue
		}
		group.Go(func() error {
			made, err := d.create(ctx, name, a.params, req)
			answers[i] = answerOf(name, made, err)
			return nil
		})
	}
	_ = group.Wait()
	d.found.remember(a.PVC.UID, key, answers)
	node, err = decideAdoption(answers, a.params.pool, path)
	if pathErr != nil && errors.Is(err, directory.ErrNoDirectory) {
		return "", pathErr
	}
	return node, err
}

// couldHave returns the nodes that could have the directory a claim is to get: all
// that have a server, or had the pool lately, and that the class allows, be they ready,
// cordoned or not.
func (d *Driver) couldHave(ctx context.Context, a attempt) ([]string, error) {
	all, err := d.names(ctx)
	if err != nil {
		return nil, err
	}
	for _, node := range d.pools.nodesIn(a.params.pool) {
		if !slices.Contains(all, node) {
			all = append(all, node)
		}
	}
	var names []string
	for _, name := range all {
		node, err := d.options.Node(ctx, name)
		switch {
		case apierrors.IsNotFound(err): // no pod gets there
		case err != nil:
			return nil, fmt.Errorf("read node %s: %w", name, err)
		case matchesAny(a.StorageClass.AllowedTopologies, node.Labels):
			names = append(names, name)
		}
	}
	return names, nil
}

// refuseNamed refuses to adopt what is another volume's: its marker may be lost. A dry
// run tells which directory would be adopted.
func (d *Driver) refuseNamed(ctx context.Context, node string, a attempt, path string) error {
	if !a.params.Adopt || d.options.NamedBy == nil {
		return nil
	}
	req := a.params.request(a.ProvisionOptions, path)
	req.Parameters[wire.ParamDryRun] = wire.DryRunYes
	found, err := d.create(ctx, node, a.params, req)
	if err != nil {
		return err
	}
	if err := checkMade(found); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	about := found.GetVolumeContext()
	base, inside := about[wire.ContextDirectory], about[wire.ContextPath]
	at := filepath.Join(base, inside)
	other, err := d.options.NamedBy(ctx, node, about[wire.ContextPoolID], base, inside, a.PVName)
	if err != nil {
		return fmt.Errorf("adopt %s on node %s: %w", at, node, err)
	}
	if other == "" {
		return nil
	}
	return &provisioner.UnavailableError{RetryAfter: request.NamedRetry, Err: notAdopted{request.RefuseNamed(at, other)}}
}

// adoptionRefused turns what one node has said into what it means where no other node
// will do.
func (d *Driver) adoptionRefused(err error, a attempt) error {
	switch code := wire.CodeOf(err); {
	case code == codes.OutOfRange:
		return outOfRangeOf(err, a.PVC.Spec.Resources.Requests[corev1.ResourceStorage])
	case code == codes.ResourceExhausted, errors.Is(err, directory.ErrNoDirectory):
		if _, waits := provisioner.RetryAfter(err); !waits {
			return refuseAdoption(err)
		}
	}
	return err
}

// question is what nodes were asked for a claim.
type question struct {
	class types.UID
	path  string
	size  int64
}

// adoptions remember what nodes have answered, so that claims that wait ask again
// only those that have not, or not lately.
type adoptions struct {
	clock clock.PassiveClock

	mu     sync.Mutex
	claims map[types.UID]remembered
}

// remembered is what nodes have answered, and when the first of them has.
type remembered struct {
	question
	since   time.Time
	answers map[string]answer
}

func newAdoptions(c clock.PassiveClock) *adoptions {
	return &adoptions{clock: c, claims: map[types.UID]remembered{}}
}

// recall returns the answers for a claim that still count.
func (m *adoptions) recall(claim types.UID, asked question) map[string]answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, ok := m.claims[claim]
	if !ok || known.question != asked || m.clock.Since(known.since) >= adoptionCounts {
		return nil
	}
	return known.answers
}

// remember keeps answers, but those of nodes that could not say.
func (m *adoptions) remember(claim types.UID, asked question, answers []answer) {
	told := map[string]answer{}
	for _, a := range answers {
		if a.finding != unknown {
			told[a.node] = a
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Now()
	maps.DeleteFunc(m.claims, func(_ types.UID, old remembered) bool { return now.Sub(old.since) >= adoptionCounts })
	since := now
	if before, ok := m.claims[claim]; ok && before.question == asked {
		since = before.since
	}
	m.claims[claim] = remembered{question: asked, since: since, answers: told}
}

// forget drops the answers for a claim.
func (m *adoptions) forget(claim types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.claims, claim)
}
