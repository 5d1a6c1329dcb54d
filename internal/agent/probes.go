package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/health"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

// lookInterval is the time between two looks at the pools. Probes come from
// anywhere, and must not make the disks busy.
const lookInterval = 10 * time.Second

// probes answer whether the process lives, and whether it can be used.
type probes struct {
	node        *node.Server
	certificate agenttls.Source

	mu sync.Mutex
	// directories is how many there are, and usable how many of them can be used;
	// problems is what is wrong with the others.
	directories, usable int
	problems            error
	// ending says that the process was asked to end.
	ending bool
}

func newProbes(n *node.Server, certificate agenttls.Source) *probes {
	return &probes{node: n, certificate: certificate, problems: errors.New("the pools have not been looked at yet")}
}

// run looks at the pools until ctx ends.
func (p *probes) run(ctx context.Context) error {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		p.look(ctx)
		select {
		case <-ctx.Done():
			p.mu.Lock()
			p.ending = true
			p.mu.Unlock()
			return nil
		case <-ticker.C:
		}
	}
}

// look finds out whether any directory can be used. One that can't costs its own
// volumes, and the node is needed for the others.
func (p *probes) look(ctx context.Context) {
	var failed []error
	all := p.node.Stats(ctx)
	for _, stats := range all {
		if stats.Err != nil {
			failed = append(failed, stats.Err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.directories, p.usable, p.problems = len(all), len(all)-len(failed), errors.Join(failed...)
}

// pools tells how many directories can be used; none is an error.
func (p *probes) pools(context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.usable == 0 {
		return "", p.problems
	}
	detail := fmt.Sprintf("%d of %d directories can be used", p.usable, p.directories)
	if p.problems != nil {
		detail += "; " + strings.ReplaceAll(p.problems.Error(), "\n", "; ")
	}
	return detail, nil
}

// holds tells until when the certificate holds.
func (p *probes) holds(context.Context) (string, error) {
	identity, err := p.certificate.Identity()
	if err != nil {
		return "", fmt.Errorf("no certificate: %w", err)
	}
	end := identity.Certificate.Leaf.NotAfter
	if time.Now().After(end) {
		return "", fmt.Errorf("the certificate ended at %s", end.Format(time.RFC3339))
	}
	return "holds until " + end.UTC().Format(time.RFC3339), nil
}

// runs fails once the process was asked to end.
func (p *probes) runs(context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending {
		return "", errors.New("is about to end")
	}
	return "runs", nil
}

func (p *probes) handler() http.Handler {
	return health.Mux(
		health.Check{Name: "process", Look: p.runs},
		health.Check{Name: "pools", Look: p.pools},
		health.Check{Name: "certificate", Look: p.holds},
	)
}
