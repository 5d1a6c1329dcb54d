package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

// Ports from which a server that exports "secure" takes calls, without the
// lower half of those below 1024, where services live.
const (
	firstReserved = 665
	reservedPorts = 1023 - firstReserved + 1
	// bindAttempts is how many reserved ports are tried.
	bindAttempts = 64
)

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// dial connects within timeout, from a reserved port if this process may have
// one.
func dial(ctx context.Context, resolver *net.Resolver, address string, unprivileged bool, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive, Resolver: resolver}
	if !unprivileged {
		start := rand.IntN(reservedPorts) //nolint:gosec // any free port will do
		for i := range bindAttempts {
			dialer.LocalAddr = &net.TCPAddr{Port: firstReserved + (start+i)%reservedPorts}
			network, err := dialer.DialContext(ctx, "tcp", address)
			if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
				continue
			}
			if !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EPERM) {
				return network, err
			}
			break
		}
		dialer.LocalAddr = nil
	}
	return dialer.DialContext(ctx, "tcp", address)
}
