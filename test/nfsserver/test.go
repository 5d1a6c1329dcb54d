package nfsserver

import (
	"os"
	"testing"
)

// ForTest starts a server that ends with the test. Where one can't be had the
// test is skipped with the reason, or fails when RequireEnv is set.
func ForTest(t testing.TB, exports ...Export) *Server {
	t.Helper()
	if missing := Missing(); missing != "" {
		if os.Getenv(RequireEnv) != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	s, err := Start(t.Context(), Options{Dir: t.TempDir(), Exports: exports})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}
