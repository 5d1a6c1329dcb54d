package health_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-storage/berth/internal/health"
)

func says(name, detail string, err error) health.Check {
	return health.Check{Name: name, Look: func(context.Context) (string, error) { return detail, err }}
}

func TestProbesTellMoreWhenAskedAndWhenTheyFail(t *testing.T) {
	well := health.Mux(says("caches", "synced", nil), says("leader", "standby", nil))
	ill := health.Mux(says("caches", "", errors.New("not synced")), says("leader", "standby", nil))
	for name, tt := range map[string]struct {
		handler http.Handler
		path    string
		code    int
		body    string
	}{
		"well":          {well, "/readyz", 200, "ok\n"},
		"well, verbose": {well, "/readyz?verbose", 200, "[+]caches: synced\n[+]leader: standby\nok\n"},
		"ill":           {ill, "/readyz", 503, "[-]caches: not synced\n[+]leader: standby\nfailed\n"},
		"alive, if ill": {ill, "/healthz", 200, "ok\n"},
		"elsewhere":     {well, "/metrics", 404, "404 page not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			tt.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, tt.path, nil))
			if diff := cmp.Diff(tt.body, w.Body.String()); diff != "" || w.Code != tt.code {
				t.Errorf("status %d, want %d; body (-want +got):\n%s", w.Code, tt.code, diff)
			}
		})
	}
}

func TestACheckThatHangsIsGivenUp(t *testing.T) {
	hangs := health.Check{Name: "caches", Look: func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}}
	w := httptest.NewRecorder()
	health.Handler(hangs).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d", w.Code)
	}
}
