package agenttls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// fileInterval is the time between two looks at files that are not there yet.
const fileInterval = time.Second

// Files is a Source that follows three files, as a mounted Secret has them. They
// may be there later than the process.
type Files struct {
	certificate, key, authorities string
	log                           logr.Logger

	mu      sync.Mutex
	watcher *certwatcher.CertWatcher
	missing error
	// trusted is what was read of authorities last, and trustedText from what.
	trusted     []*x509.Certificate
	trustedText []byte
	// identity is the last one, and shown its certificate: connections share
	// them.
	identity *Identity
	shown    *tls.Certificate
}

// NewFiles returns a Source for the files of a certificate, its key, and the
// authorities to trust. Start has to run for changes to be seen.
func NewFiles(certificate, key, authorities string, log logr.Logger) *Files {
	f := &Files{certificate: certificate, key: key, authorities: authorities, log: log}
	f.open()
	return f
}

// Start follows the files until ctx ends.
func (f *Files) Start(ctx context.Context) error {
	ticker := time.NewTicker(fileInterval)
	defer ticker.Stop()
	for {
		watcher := f.open()
		if watcher != nil {
			return watcher.Start(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// NeedLeaderElection is false: every process has its own files.
func (f *Files) NeedLeaderElection() bool { return false }

// open returns the watcher of certificate and key, once they are there.
func (f *Files) open() *certwatcher.CertWatcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watcher != nil {
		return f.watcher
	}
	watcher, err := certwatcher.New(f.certificate, f.key)
	if err != nil {
		f.missing = err
		return nil
	}
	f.watcher, f.missing = watcher, nil
	return watcher
}

// Identity implements Source. The authorities are read anew each time: this is
// called once a connection.
func (f *Files) Identity() (*Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watcher == nil {
		return nil, f.missing
	}
	if err := f.readAuthoritiesLocked(); err != nil {
		if f.trusted == nil {
			return nil, err
		}
		f.log.Error(err, "Read the authorities to trust; going on with those of before")
	}
	certificate, err := f.watcher.GetCertificate(nil)
	if err != nil {
		return nil, err
	}
	if certificate == nil {
		return nil, errors.New("the certificate is not loaded")
	}
	if f.identity == nil || f.shown != certificate || !slices.Equal(f.identity.Authorities, f.trusted) {
		f.identity, f.shown = &Identity{Certificate: *certificate, Authorities: f.trusted}, certificate
	}
	return f.identity, nil
}

func (f *Files) readAuthoritiesLocked() error {
	text, err := os.ReadFile(f.authorities)
	if err != nil {
		return err
	}
	if f.trusted != nil && bytes.Equal(text, f.trustedText) {
		return nil
	}
	trusted, err := ParseAuthorities(text)
	if err != nil {
		return fmt.Errorf("%s: %w", f.authorities, err)
	}
	f.trusted, f.trustedText = trusted, text
	return nil
}
