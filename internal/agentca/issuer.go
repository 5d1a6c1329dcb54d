package agentca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-storage/berth/internal/agenttls"
)

const (
	// interval is the time between two looks at the Secrets: somebody may have
	// emptied one.
	interval = 5 * time.Minute
	// retry is when to look again after something failed.
	retry = 5 * time.Second
	// firstPatience is how long to wait for the first look.
	firstPatience = 2 * time.Second
)

// Secrets names the Secrets, which have to exist. There need not be one for who
// reads the agents' metrics: Metrics may be "".
type Secrets struct {
	Namespace, Authority, Agent, Controller, Metrics string
}

// leaves are the Secrets of certificates that the authority signs. The
// controller's comes first.
func (s Secrets) leaves() (names []string, kinds []leafKind) {
	names, kinds = []string{s.Controller, s.Agent}, []leafKind{controllerKind, agentKind}
	if s.Metrics != "" {
		names, kinds = append(names, s.Metrics), append(kinds, metricsKind)
	}
	return names, kinds
}

// Issuer keeps the Secrets filled, on the elected leader. It is the
// controller's agenttls.Source.
type Issuer struct {
	// Reader reads from the API server: these Secrets belong in no cache.
	Reader client.Reader
	// Writer writes to it.
	Writer client.Writer
	// Secrets says where certificates are kept.
	Secrets Secrets
	// Policy says when they are renewed.
	Policy Policy
	// Clock is the time of all decisions.
	Clock clock.Clock

	once  sync.Once
	first chan struct{} // closed when the first look is over

	mu       sync.Mutex
	identity *agenttls.Identity
	problem  error
	// shown are the certificates of the last look, for the metric.
	shown map[string]*x509.Certificate
}

// +kubebuilder:rbac:groups="",namespace=berth-system,resources=secrets,resourceNames=berth-ca;berth-agent-tls;berth-controller-tls;berth-metrics-tls,verbs=get;update

// NeedLeaderElection is true: one issues, so that there is one authority.
func (i *Issuer) NeedLeaderElection() bool { return true }

// Start looks after the certificates until ctx ends.
func (i *Issuer) Start(ctx context.Context) error {
	for {
		wait := interval
		if err := i.round(ctx); err != nil && ctx.Err() == nil {
			wait = retry
			// Two replicas may meet at a change of leaders.
			if !apierrors.IsConflict(err) {
				log.FromContext(ctx).Error(err, "Look after the certificates of controller and agents")
			}
		}
		timer := i.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
	}
}

// looked returns what is closed when the first look is over.
func (i *Issuer) looked() chan struct{} {
	i.once.Do(func() { i.first = make(chan struct{}) })
	return i.first
}

// Identity implements agenttls.Source. A new leader calls agents at once, so it
// waits a moment for the first look.
func (i *Issuer) Identity() (*agenttls.Identity, error) {
	timer := time.NewTimer(firstPatience)
	defer timer.Stop()
	select {
	case <-i.looked():
	case <-timer.C:
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.identity != nil:
		return i.identity, nil
	case i.problem != nil:
		return nil, i.problem
	}
	return nil, errors.New("none is issued yet")
}

// Certificates returns those of the last look, by name, for agenttls.Expiry.
func (i *Issuer) Certificates() map[string]*x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.shown)
}

// round looks at all Secrets once, and writes what has to be different: the
// authority's first.
func (i *Issuer) round(ctx context.Context) error {
	identity, shown, err := i.look(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.problem = err
	if err == nil {
		i.identity, i.shown = identity, shown
	}
	select {
	case <-i.looked():
	default:
		close(i.first)
	}
	return err
}

func (i *Issuer) look(ctx context.Context) (*agenttls.Identity, map[string]*x509.Certificate, error) {
	authoritySecret, err := i.read(ctx, i.Secrets.Authority)
	if err != nil {
		return nil, nil, err
	}
	now := i.Clock.Now()
	names, kinds := i.Secrets.leaves()
	secrets, leaves := make([]*corev1.Secret, len(names)), make([]leaf, len(names))
	for n, kind := range kinds {
		if secrets[n], err = i.read(ctx, names[n]); err != nil {
			return nil, nil, err
		}
		var problem error
		leaves[n], problem = parseLeaf(kind, secrets[n].Data, secrets[n].Annotations)
		i.complain(ctx, names[n], problem)
	}
	have, problem := parseAuthority(authoritySecret.Data)
	i.complain(ctx, i.Secrets.Authority, problem)
	authority, change, err := i.Policy.decideAuthority(now, have, leaves...)
	if err != nil {
		return nil, nil, fmt.Errorf("make an authority: %w", err)
	}
	if err := i.write(ctx, authoritySecret, authority.data(), nil, change); err != nil {
		return nil, nil, err
	}
	shown := map[string]*x509.Certificate{"ca": authority.signing.certificate}
	for n := range leaves {
		want, change, err := i.Policy.decideLeaf(now, authority, leaves[n])
		if err != nil {
			return nil, nil, fmt.Errorf("sign a certificate: %w", err)
		}
		if err := i.write(ctx, secrets[n], want.data(), want.annotations(), change); err != nil {
			return nil, nil, err
		}
		leaves[n] = want
		shown[want.kind.label] = want.pair.certificate
	}
	mine := leaves[0]
	identity, err := agenttls.Parse(mine.pair.certificatePEM, mine.pair.keyPEM, mine.bundle)
	return identity, shown, err
}

func (i *Issuer) complain(ctx context.Context, secret string, problem error) {
	if problem != nil {
		log.FromContext(ctx).Error(problem, "Replace what is in a Secret", "secret", secret)
	}
}

func (i *Issuer) read(ctx context.Context, name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	err := i.Reader.Get(ctx, types.NamespacedName{Namespace: i.Secrets.Namespace, Name: name}, secret)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("secret %s/%s is not there: make an empty one, it is filled then", i.Secrets.Namespace, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", i.Secrets.Namespace, name, err)
	}
	return secret, nil
}

// write replaces what a Secret says, if there is a change, unless somebody has
// written it since it was read.
func (i *Issuer) write(ctx context.Context, secret *corev1.Secret, data map[string][]byte, annotations map[string]string, change string) error {
	if change == "" {
		return nil
	}
	if maps.EqualFunc(secret.Data, data, bytes.Equal) && contains(secret.Annotations, annotations) {
		return nil
	}
	written := secret.DeepCopy()
	written.Data = data
	if written.Annotations == nil {
		written.Annotations = map[string]string{}
	}
	maps.Copy(written.Annotations, annotations)
	if err := i.Writer.Update(ctx, written); err != nil {
		return fmt.Errorf("write secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	log.FromContext(ctx).Info("Changed the certificates of controller and agents", "secret", secret.Name, "change", change)
	return nil
}

func contains(all, some map[string]string) bool {
	for key, value := range some {
		if all[key] != value {
			return false
		}
	}
	return true
}
