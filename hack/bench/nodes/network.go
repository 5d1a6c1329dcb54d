package main

import (
	"net"

	"golang.org/x/sys/unix"
)

// maxNodes is how many nodes have an address.
const maxNodes = 1 << 16

// nodeIP is the address of the pod of an agent. Those of loopback are no choice:
// an EndpointSlice must not name them.
func nodeIP(n int) net.IP {
	return net.IPv4(10, 200+byte(n>>16), byte(n>>8), byte(n)) //nolint:gosec // each is a part of n
}

// makeNetwork brings up loopback, and makes the addresses of all nodes loopback's:
// on that device, all addresses of a network are local.
func makeNetwork() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	alias, err := unix.NewIfreq("lo:nodes")
	if err != nil {
		return err
	}
	if err := alias.SetInet4Addr(net.IPv4(10, 200, 0, 1).To4()); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFADDR, alias); err != nil {
		return err
	}
	if err := alias.SetInet4Addr(net.IPv4(255, 254, 0, 0).To4()); err != nil {
		return err
	}
	return unix.IoctlIfreq(socket, unix.SIOCSIFNETMASK, alias)
}
