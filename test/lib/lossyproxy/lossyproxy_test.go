package lossyproxy_test

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/berth-storage/berth/test/lib/lossyproxy"
)

// echo is a server that sends every byte back.
func echo(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	return listener.Addr().String()
}

// ask sends a record and reports whether it comes back, within a moment.
func ask(t *testing.T, conn net.Conn) error {
	t.Helper()
	record := append(binary.BigEndian.AppendUint32(nil, 1<<31|4), "ping"...)
	if _, err := conn.Write(record); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, err := io.ReadFull(conn, make([]byte, len(record)))
	return err
}

func TestWhatHappensToRecords(t *testing.T) {
	for name, test := range map[string]struct {
		faults lossyproxy.Faults
		want   lossyproxy.Counts
		broken bool
	}{
		"nothing": {lossyproxy.Faults{}, lossyproxy.Counts{Records: 2}, false},
		"lost":    {lossyproxy.Faults{Lose: 1}, lossyproxy.Counts{Records: 1, Lost: 1}, true},
		"reset":   {lossyproxy.Faults{Reset: 1}, lossyproxy.Counts{Records: 1, Resets: 1}, true},
		"delayed": {lossyproxy.Faults{Delay: 1, LongestDelay: time.Millisecond}, lossyproxy.Counts{Records: 2, Delayed: 2}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := lossyproxy.New(t, echo(t), 1, test.faults)
			conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(p.Port())))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := ask(t, conn); (err != nil) != test.broken {
				t.Errorf("error = %v", err)
			}
			if got := p.Counts(); got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}
