package agenttls_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/onsi/gomega"

	"github.com/berth-storage/berth/internal/agenttls"
	"github.com/berth-storage/berth/internal/agenttls/tlstest"
)

// mount is a directory that changes like that of a mounted Secret: what is in it
// are links through ..data, which is replaced in one step.
type mount struct {
	t       *testing.T
	dir     string
	version int
}

func (m *mount) write(authority *tlstest.Authority) {
	m.t.Helper()
	m.version++
	version := filepath.Join(m.dir, "..v"+string(rune('0'+m.version)))
	m.ok(os.Mkdir(version, 0o700))
	m.ok(authority.Write(version, tlstest.Agent))
	m.ok(os.Symlink(filepath.Base(version), filepath.Join(m.dir, "..tmp")))
	old, _ := os.Readlink(m.path("..data"))
	m.ok(os.Rename(m.path("..tmp"), m.path("..data")))
	if old != "" {
		m.ok(os.RemoveAll(m.path(old)))
		return
	}
	for _, name := range []string{agenttls.CertificateFile, agenttls.KeyFile, agenttls.AuthoritiesFile} {
		m.ok(os.Symlink(filepath.Join("..data", name), m.path(name)))
	}
}

func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mount) ok(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func TestFilesThatComeLateAndChangeAreFollowed(t *testing.T) {
	g := gomega.NewWithT(t)
	m := &mount{t: t, dir: t.TempDir()}
	files := agenttls.NewFiles(m.path(agenttls.CertificateFile), m.path(agenttls.KeyFile), m.path(agenttls.AuthoritiesFile), logr.Discard())
	if _, err := files.Identity(); err == nil {
		t.Fatal("an identity without files")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- files.Start(ctx) }()
	for range 3 {
		authority, err := tlstest.NewAuthority()
		m.ok(err)
		m.write(authority)
		g.Eventually(func() bool {
			identity, err := files.Identity()
			return err == nil && isOf(identity, authority)
		}).WithTimeout(30 * time.Second).WithPolling(20 * time.Millisecond).Should(gomega.BeTrue())
	}
	// What can't be read takes nothing away.
	m.ok(os.WriteFile(m.path(agenttls.AuthoritiesFile), []byte("nonsense"), 0o600))
	if _, err := files.Identity(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// isOf reports whether authority has signed the certificate, and is trusted.
func isOf(identity *agenttls.Identity, authority *tlstest.Authority) bool {
	trusted, err := agenttls.ParseAuthorities(authority.PEM)
	return err == nil && len(identity.Authorities) == 1 && identity.Authorities[0].Equal(trusted[0]) &&
		identity.Certificate.Leaf.CheckSignatureFrom(trusted[0]) == nil
}

func TestAuthoritiesAreCertificatesOnly(t *testing.T) {
	authority := must[*tlstest.Authority](t)(tlstest.NewAuthority())
	_, key, err := authority.Sign(tlstest.Agent)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"nothing": nil, "no PEM": []byte("hello"), "a key among them": append(key, authority.PEM...)} {
		if _, err := agenttls.ParseAuthorities(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
