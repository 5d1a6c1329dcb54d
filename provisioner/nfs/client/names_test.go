package client_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-storage/berth/provisioner/nfs/client"
)

// nodes are two servers at the same port of two addresses. They have the same
// files, and know nothing of each other's clients.
func nodes(t *testing.T) (one, other *server) {
	t.Helper()
	one, other = newServer(t), newServer(t)
	other.stop()
	_, port, err := net.SplitHostPort(one.address)
	must(t, err)
	other.base = one.base
	other.start(net.JoinHostPort("127.0.0.2", port))
	return one, other
}

// resolveInTurn is a resolver that answers with one address after the other, as
// a server of names does that distributes clients over nodes.
func resolveInTurn(t *testing.T, addresses ...string) *net.Resolver {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	go func() {
		query := make([]byte, 512)
		for asked := 0; ; {
			n, from, err := socket.ReadFrom(query)
			if err != nil {
				return
			}
			// header, name, type, class; then what else the client sent
			end := 12
			for query[end] != 0 {
				end += 1 + int(query[end])
			}
			question := query[12 : end+5]
			answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
			if binary.BigEndian.Uint16(question[len(question)-4:]) == 1 { // A
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				answer = append(answer, net.ParseIP(addresses[asked%len(addresses)]).To4()...)
				asked++
			}
			if _, err := socket.WriteTo(answer, from); err != nil || n < end {
				return
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", socket.LocalAddr().String())
	}}
}

// Behind one name there may be several servers, each of which knows only the
// clients that were introduced to it.
func TestNameOfSeveralServers(t *testing.T) {
	t.Parallel()
	for _, version := range append([]client.Version{client.VersionAuto}, versions...) {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			one, other := nodes(t)
			options := one.options(version)
			options.Server = "nas.test"
			c := one.dialWith(options, client.PoolOptions{
				IdleTimeout: 10 * time.Millisecond, // every call may need a new connection
				Resolver:    resolveInTurn(t, "127.0.0.1", "127.0.0.2"),
			})
			root := rootOf(t, c)
			for i := range 10 {
				must(t, root.WriteFile(t.Context(), fmt.Sprint("f", i), "tmp", []byte("x")))
				eventually(t, "the connection is closed", func() bool { return one.openConnections() == 0 })
			}
			if n := other.dials(); n != 0 {
				t.Errorf("the other server has had %d connections", n)
			}
			one.stop()
			must(t, eventuallyNot(t, client.ErrUnreachable, func() error { _, err := c.Root(t.Context()); return err }))
			if other.dials() == 0 {
				t.Error("the other server was not asked")
			}
		})
	}
}

// distribute sends each connection to another server, as a balancer of load
// does.
func distribute(t *testing.T, addresses ...string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	var accepted atomic.Int32
	go func() {
		for {
			outer, err := listener.Accept()
			if err != nil {
				return
			}
			inner, err := net.Dial("tcp", addresses[int(accepted.Add(1))%len(addresses)])
			if err != nil {
				_ = outer.Close()
				continue
			}
			for from, to := range map[net.Conn]net.Conn{inner: outer, outer: inner} {
				go func() {
					_, _ = io.Copy(to, from)
					_ = to.Close()
				}()
			}
		}
	}()
	return listener.Addr().String()
}

func TestAddressOfSeveralServers(t *testing.T) {
	t.Parallel()
	for _, version := range versions {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			one, other := nodes(t)
			front := &server{t: t, address: distribute(t, one.address, other.address)}
			root := rootOf(t, front.dial(version))
			for i := range 10 {
				must(t, root.WriteFile(t.Context(), fmt.Sprint("f", i), "tmp", []byte("x")))
			}
		})
	}
}
