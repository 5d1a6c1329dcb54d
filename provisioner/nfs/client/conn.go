package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// errLost says that a connection ended.
var errLost = errors.New("connection lost")

// conn is a connection on which several calls may be outstanding.
type conn struct {
	network net.Conn
	idle    time.Duration
	silence time.Duration
	// writing is held, by what it holds, by whoever sends.
	writing chan struct{}

	mu       sync.Mutex
	waiting  map[uint32]chan []byte
	received uint64
	// unanswered is when the first call was sent since anything was received.
	unanswered time.Time
	lost       error
	idling     *time.Timer
}

// newConn begins to read. A connection without calls for idle is closed, one
// that is silent for silence although a call is outstanding counts as lost.
func newConn(network net.Conn, idle, silence time.Duration) *conn {
	c := &conn{network: network, idle: idle, silence: silence, writing: make(chan struct{}, 1), waiting: map[uint32]chan []byte{}}
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
	c.received++
	c.unanswered = time.Time{}
	if reply, ok := c.waiting[xid]; ok {
		reply <- record
		c.forget(xid)
	}
}

// forget is called with mu held.
func (c *conn) forget(xid uint32) {
	delete(c.waiting, xid)
	if len(c.waiting) == 0 && c.lost == nil {
		c.idling.Reset(c.idle)
	}
}

func (c *conn) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
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
// when the connection ended; sent says whether the server may have seen
// anything of the call.
func (c *conn) roundTrip(ctx context.Context, xid uint32, record []byte) (result []byte, sent bool, err error) {
	reply, err := c.expect(xid)
	if err != nil {
		return nil, false, err
	}
	defer c.abandon(xid)
	sent, err = c.send(ctx, record)
	if err != nil {
		return nil, sent, err
	}
	result, err = c.wait(ctx, reply)
	return result, true, err
}

func (c *conn) send(ctx context.Context, record []byte) (sent bool, err error) {
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-c.writing }()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	deadline, _ := ctx.Deadline()
	if err := c.network.SetWriteDeadline(deadline); err != nil {
		c.close(err)
		return false, c.err()
	}
	c.sending()
	if n, err := c.network.Write(record); err != nil {
		// Half a record would spoil what follows.
		c.close(err)
		return n > 0, c.err()
	}
	return true, nil
}

// wait gives the connection up when nothing at all has come for a while: the
// other end may be gone without a word.
func (c *conn) wait(ctx context.Context, reply <-chan []byte) ([]byte, error) {
	before := c.count()
	silent := time.NewTimer(c.silence)
	defer silent.Stop()
	for {
		select {
		case result, ok := <-reply:
			if !ok {
				return nil, c.err()
			}
			return result, nil
		case <-silent.C:
			now := c.count()
			if now == before {
				c.close(fmt.Errorf("no answer within %v", c.silence))
				return nil, c.err()
			}
			before = now
			silent.Reset(c.silence)
		case <-ctx.Done():
			c.suspect()
			return nil, ctx.Err()
		}
	}
}

func (c *conn) sending() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unanswered.IsZero() {
		c.unanswered = time.Now()
	}
}

// suspect gives the connection up if it has said nothing for a good part of what
// it may be silent: callers with short deadlines must not all run into the same
// dead connection.
func (c *conn) suspect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unanswered.IsZero() && time.Since(c.unanswered) > c.silence/4 {
		c.end(errors.New("no answer before a deadline"))
	}
}

func (c *conn) count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.received
}
