package cli

import "testing"

// TestMetricsAreSecureUnlessNobodyElseCanReadThem is the meaning of
// --metrics-secure=auto.
func TestMetricsAreSecureUnlessNobodyElseCanReadThem(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:8080": false, "127.9.9.9:8080": false, "localhost:8080": false, "[::1]:8080": false,
		":8080": true, "0.0.0.0:8080": true, "[::]:8080": true, "10.0.0.1:8080": true, "metrics.example.com:8080": true,
	} {
		for secure, want := range map[string]bool{secureAuto: want, secureOn: true, secureOff: false} {
			o := metricsOptions{address: address, secure: secure}
			if got := o.secured(); got != want {
				t.Errorf("%s, --metrics-secure=%s: secured %t", address, secure, got)
			}
		}
	}
}
