package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

var (
	// errLost says that a connection ended.
	errLost = errors.New("connection lost")
	// errSilent says that nothing came over it.
	errSilent = errors.New("no answer")
)

// conn is a connection on which several calls may be outstanding.
type conn struct {
	network net.Conn
	idle    time.Duration
	// heard is told of every reply.
	heard func()
	// writing is held, by what it holds, by whoever sends.
	writing chan struct{}

	mu       sync.Mutex
	waiting  map[uint32]chan []byte
	received time.Time
	// unanswered is when the first call was sent since anything was received.
	unanswered time.Time
	lost       error
	// leaving says that no call is sent over it any more: it was silent, and
	// ends when the last of its calls is answered or forgotten.
	leaving bool
	// idling ends it when it has been idle, or leaving, for a while.
	idling *time.Timer
}

// newConn begins to read. A connection is closed when it has no calls for idle,
// or when it is leaving for as long.
func newConn(network net.Conn, idle time.Duration, heard func()) *conn {
	c := &conn{network: network, idle: idle, heard: heard, writing: make(chan struct{}, 1), waiting: map[uint32]chan []byte{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idling = time.AfterFunc(idle, c.closeIdle)
	go c.read()
	return c
}

func (c *conn) read() {
	reader := bufio.NewReaderSize(c.network, 32<<10)
	for {
		record, err := readRecord(reader)
		if err != nil {
			c.close(err)
			return
		}
		if len(record) < 4 {
			c.close(errGarbled)
			return
		}
		c.deliver(binary.BigEndian.Uint32(record), record)
	}
}

// deliver hands a record to who waits for it. Nobody does if it is a duplicate,
// or if the caller has given up.
func (c *conn) deliver(xid uint32, record []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = time.Now()
	c.unanswered = time.Time{}
	c.heard()
	if reply, ok := c.waiting[xid]; ok {
		reply <- record
		c.forget(xid)
	}
}

// forget is called with mu held.
func (c *conn) forget(xid uint32) {
	delete(c.waiting, xid)
	switch {
	case len(c.waiting) > 0 || c.lost != nil:
	case c.leaving:
		c.end(errSilent)
	default:
		c.idling.Reset(c.idle)
	}
}

func (c *conn) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 || c.leaving {
		c.end(errors.New("idle"))
	}
}

// close ends the connection and tells everybody who waits.
func (c *conn) close(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(cause)
}

// end is close with mu held.
func (c *conn) end(cause error) {
	if c.lost != nil {
		return
	}
	c.lost = fmt.Errorf("%w: %w", errLost, cause)
	c.idling.Stop()
	_ = c.network.Close()
	for xid, reply := range c.waiting {
		close(reply)
		delete(c.waiting, xid)
	}
}

// leave makes calls to come use another connection. Those that wait here go on
// waiting: the server may only be slow. It is called with mu held.
func (c *conn) leave() {
	if c.leaving || c.lost != nil {
		return
	}
	c.leaving = true
	c.idling.Reset(c.idle)
}

// usable reports whether calls may be sent over the connection.
func (c *conn) usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost == nil && !c.leaving
}

func (c *conn) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// expect registers a call before it is sent.
func (c *conn) expect(xid uint32) (<-chan []byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return nil, c.lost
	}
	if c.leaving {
		return nil, errLost
	}
	c.idling.Stop()
	reply := make(chan []byte, 1)
	c.waiting[xid] = reply
	return reply, nil
}

func (c *conn) abandon(xid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[xid]; ok {
		c.forget(xid)
	}
}

// roundTrip sends a record and waits for the reply. The error wraps errLost
// when the connection ended, and errSilent when nothing at all has come for the
// time of silence. If the server may have seen anything of the call, late is not
// nil then: the reply that may still come, or nothing when the connection ends
// before. Whoever does not wait for that abandons the call.
func (c *conn) roundTrip(ctx context.Context, xid uint32, record []byte, silence time.Duration) (result []byte, late <-chan []byte, err error) {
	reply, err := c.expect(xid)
	if err != nil {
		return nil, nil, err
	}
	sent, err := c.send(ctx, record, silence)
	if err == nil {
		if result, err = c.wait(ctx, reply, silence); err == nil {
			return result, nil, nil
		}
	}
	if !sent {
		c.abandon(xid)
		return nil, nil, err
	}
	return nil, reply, err
}

func (c *conn) send(ctx context.Context, record []byte, silence time.Duration) (sent bool, err error) {
	stuck := time.NewTimer(silence)
	defer stuck.Stop()
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	case <-stuck.C:
		return false, errSilent
	}
	defer func() { <-c.writing }()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	deadline := time.Now().Add(silence)
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(deadline) {
		deadline = earlier
	}
	if err := c.network.SetWriteDeadline(deadline); err != nil {
		c.close(err)
		return false, c.err()
	}
	c.sending()
	if n, err := c.network.Write(record); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errSilent
		}
		// Half a record would spoil what follows.
		c.close(err)
		return n > 0, c.err()
	}
	return true, nil
}

// wait makes others leave the connection alone when nothing at all has come for
// a while: the other end may be gone without a word.
func (c *conn) wait(ctx context.Context, reply <-chan []byte, silence time.Duration) ([]byte, error) {
	begun := time.Now()
	silent := time.NewTimer(silence)
	defer silent.Stop()
	for {
		select {
		case result, ok := <-reply:
			if !ok {
				return nil, c.err()
			}
			return result, nil
		case <-silent.C:
			left := silence - time.Since(later(begun, c.lastReceived()))
			if left <= 0 {
				c.mu.Lock()
				c.leave()
				c.mu.Unlock()
				return nil, errSilent
			}
			silent.Reset(left)
		case <-ctx.Done():
			c.suspect(silence)
			return nil, ctx.Err()
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *conn) sending() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unanswered.IsZero() {
		c.unanswered = time.Now()
	}
}

// suspect leaves the connection if it has said nothing for a good part of what
// it may be silent: callers with short deadlines must not all run into the same
// dead connection.
func (c *conn) suspect(silence time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unanswered.IsZero() && time.Since(c.unanswered) > silence/4 {
		c.leave()
	}
}

func (c *conn) lastReceived() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.received
}
