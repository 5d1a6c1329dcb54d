package client

import (
	"context"
	"errors"
	"fmt"
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

const dialTimeout = 10 * time.Second

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// dial connects, from a reserved port if this process may have one.
func dial(ctx context.Context, address string, unprivileged bool) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	if !unprivileged {
		start := rand.IntN(reservedPorts) //nolint:gosec // any free port will do
		for i := range bindAttempts {
			dialer.LocalAddr = &net.TCPAddr{Port: firstReserved + (start+i)%reservedPorts}
			network, err := dialer.DialContext(ctx, "tcp", address)
			if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
				continue
			}
			if !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EPERM) {
				return network, wrapDial(err)
			}
			break
		}
		dialer.LocalAddr = nil
	}
	network, err := dialer.DialContext(ctx, "tcp", address)
	return network, wrapDial(err)
}

func wrapDial(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("connect to the NFS server: %w", err)
}
