// Package health answers the probes of kubelet, and tells people who ask for more
// (?verbose) what it knows.
//
// A probe fails for what this process lacks to do its work, and for nothing else:
// a restart or a pod that is not ready would help nobody whose node or server is
// down. Such things are told, and do not count.
package health

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// patience is how long one check may take. It is less than kubelet waits for an
// answer (timeoutSeconds is 1 by default).
const patience = 500 * time.Millisecond

// Check is one thing that is looked at.
type Check struct {
	Name string
	// Look says what there is to say. An error fails the probe.
	Look func(ctx context.Context) (detail string, err error)
}

// Handler answers a probe with checks: with status 200 when none of them fails,
// and with 503 and the whole story otherwise.
func Handler(checks ...Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		var report strings.Builder
		well := true
		for _, check := range checks {
			detail, err := check.Look(ctx)
			mark := "[+]"
			if err != nil {
				mark, detail, well = "[-]", err.Error(), false
			}
			fmt.Fprintf(&report, "%s%s: %s\n", mark, check.Name, detail)
		}
		_, verbose := r.URL.Query()["verbose"]
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case !well:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprint(w, report.String(), "failed\n")
		case verbose:
			_, _ = fmt.Fprint(w, report.String(), "ok\n")
		default:
			_, _ = fmt.Fprint(w, "ok\n")
		}
	})
}

// Mux serves checks for readiness at /readyz, and that the process answers at
// /healthz.
func Mux(readiness ...Check) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", Handler(Check{Name: "process", Look: func(context.Context) (string, error) { return "answers", nil }}))
	mux.Handle("GET /readyz", Handler(readiness...))
	return mux
}
