package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// slot4 is a place for one call at a time. Its sequence is that of the last
// call that the server took.
type slot4 struct{ number, sequence uint32 }

var (
	// errStateLost asks for a new state: the server did nothing of the call.
	errStateLost = errors.New("the server forgot the session")
	// errMistaken says that the server took a call, which changes nothing, for
	// an earlier one: it is to be made again.
	errMistaken = errors.New("the server took the call for an earlier one")
	// errNoSlot says that a call was not sent for want of a slot.
	errNoSlot = errors.New("it has not finished as many calls as it takes at a time")
)

// take waits for a slot, but not when the server says nothing for patience: one
// that answers others has only much to do, and who waits keeps the place in line.
func (p *protocol4) take(ctx context.Context, s *state4, patience time.Duration) (*slot4, error) {
	begun := time.Now()
	stuck := time.NewTimer(patience)
	defer stuck.Stop()
	for {
		select {
		case slot := <-s.slots:
			return slot, nil
		case <-s.life.Done():
			return nil, errStateLost
		case <-ctx.Done():
			return nil, busy(ctx, errNoSlot)
		case <-stuck.C:
			left := patience - p.nfs.silentSince(begun)
			if left <= 0 {
				return nil, errSilent
			}
			stuck.Reset(left)
		}
	}
}

// begin is the operation that begins a call in a slot.
func (s *state4) begin(slot *slot4) io.WriterTo {
	return &nfsv4.NfsArgop4_OP_SEQUENCE{Opsequence: nfsv4.Sequence4args{
		SaSessionid: s.session, SaSequenceid: slot.sequence + 1, SaSlotid: slot.number, SaHighestSlotid: s.highest,
	}}
}

// within makes a call that belongs to a state. In version 4.1 that takes a slot
// of the session, each time that the call is made. A slot is used again when the
// server has taken its sequence id, and not before, so that no call is answered
// with the reply to another one.
func (p *protocol4) within(ctx context.Context, s *state4, c change, operations []io.WriterTo) (reply *reply4, err error) {
	if p.minor == 0 {
		return p.plain(ctx, c, operations...)
	}
	var final error
	err = p.nfs.persist(ctx, c == nil, func(patience time.Duration) (sent bool, err error) {
		slot, err := p.take(ctx, s, patience)
		if errors.Is(err, errStateLost) || errors.Is(err, errNoSlot) {
			final = err
			return false, nil
		}
		if err != nil {
			return false, err
		}
		r := p.request(c, append([]io.WriterTo{s.begin(slot)}, operations...))
		xid := p.nfs.xid.Add(1)
		message, err := r.encode(xid)
		if err != nil {
			s.slots <- slot
			final = err
			return false, nil //nolint:nilerr // it is final: to ask again would not help
		}
		record, late, connection, err := p.nfs.once(ctx, xid, message, patience)
		switch {
		case err == nil:
			reply, final = p.conclude(s, slot, c, record, r, len(operations)+1)
			return true, nil
		case late == nil:
			s.slots <- slot
			return false, err
		}
		connection.abandon(xid)
		go p.recover(s, slot, p.fence.close(c))
		return true, err
	})
	if err == nil {
		err = final
	}
	return reply, err
}

// conclude reads the reply to a call in a slot.
func (p *protocol4) conclude(s *state4, slot *slot4, c change, record []byte, r request, operations int) (*reply4, error) {
	reply, err := decodeReply4(record, r, operations)
	if err != nil {
		go p.recover(s, slot, p.fence.close(c))
		return nil, err
	}
	switch judge4(taken4(reply), reply.status) {
	case slotTaken:
		slot.sequence++
		s.slots <- slot
	case slotLost:
		s.drop()
		return nil, errStateLost
	default:
		go p.recover(s, slot, func() {})
	}
	if reply.status != nfsv4.NFS4ERR_RETRY_UNCACHED_REP && reply.status != nfsv4.NFS4ERR_SEQ_FALSE_RETRY {
		return reply, nil
	}
	if c == nil {
		return nil, errMistaken
	}
	return nil, outcome(true, error4("sequence", "", reply.status))
}

// verdict4 is what the answer to a call says about its slot.
type verdict4 int

const (
	// slotTaken: the server took the sequence id, now or before.
	slotTaken verdict4 = iota
	// slotBusy: it asks for time, or is still at the call that has taken it.
	slotBusy
	// slotLost: it does not know the session, or disagrees about the slot.
	slotLost
	// slotRefused: something else is wrong with the call.
	slotRefused
)

// judge4 judges by the status of a call, and by whether SEQUENCE went well in
// it.
func judge4(taken bool, status nfsv4.Nfsstat4) verdict4 {
	if taken {
		return slotTaken
	}
	switch status {
	case nfsv4.NFS4ERR_RETRY_UNCACHED_REP, nfsv4.NFS4ERR_SEQ_FALSE_RETRY:
		return slotTaken
	case nfsv4.NFS4ERR_DELAY:
		return slotBusy
	case nfsv4.NFS4ERR_BADSESSION, nfsv4.NFS4ERR_DEADSESSION, nfsv4.NFS4ERR_BADSLOT, nfsv4.NFS4ERR_SEQ_MISORDERED,
		nfsv4.NFS4ERR_CONN_NOT_BOUND_TO_SESSION, nfsv4.NFS4ERR_STALE_CLIENTID, nfsv4.NFS4ERR_BAD_HIGH_SLOT:
		return slotLost
	}
	return slotRefused
}

// taken4 reports whether the server did more than look at SEQUENCE.
func taken4(reply *reply4) bool {
	result, err := result4[*nfsv4.NfsResop4_OP_SEQUENCE](reply)
	if err != nil {
		return false
	}
	_, ok := result.Opsequence.(*nfsv4.Sequence4res_NFS4_OK)
	return ok
}

// recover brings back the slot of a call that was not answered, and calls
// settled when the server is done with that call, or will never do it. It asks
// for the same sequence id without any operation. A server that has not seen the
// call takes that for it, and does nothing; one that is at it asks for time or
// does not answer; one that is done sends the old reply, or says that it can't.
// When the session ends before, nobody can be asked: as after the loss of a
// connection, the server may still be at it.
func (p *protocol4) recover(s *state4, slot *slot4, settled func()) {
	wait := backoff{most: time.Second}
	for wait.sleep(s.life) {
		verdict, err := p.probe(s, slot)
		switch {
		case err != nil || verdict == slotBusy:
		case verdict == slotTaken:
			settled()
			slot.sequence++
			s.slots <- slot
			return
		default:
			s.drop()
		}
	}
	time.AfterFunc(delayAfterLoss, settled)
}

// probe asks once, and waits for the answer as long as the connection lives.
func (p *protocol4) probe(s *state4, slot *slot4) (verdict4, error) {
	r := p.request(nil, []io.WriterTo{s.begin(slot)})
	xid := p.nfs.xid.Add(1)
	message, err := r.encode(xid)
	if err != nil {
		return slotBusy, err
	}
	record, late, connection, err := p.nfs.once(s.life, xid, message, p.nfs.options.AnswerTimeout)
	if late != nil {
		defer connection.abandon(xid)
		select {
		case record = <-late:
		case <-s.life.Done():
		}
	}
	if record == nil {
		return slotBusy, err
	}
	results, err := decodeReply(record, r)
	if err != nil {
		return slotBusy, err
	}
	return readProbe4(results)
}

// readProbe4 reads the reply to a SEQUENCE alone, of which only that is of
// interest: an old reply has the results of other operations too.
func readProbe4(r *bytes.Reader) (verdict4, error) {
	var status nfsv4.Nfsstat4
	if _, err := status.ReadFrom(r); err != nil {
		return slotBusy, err
	}
	if _, _, err := runtime.ReadVariableLengthOpaque(r, maxMountPath); err != nil { // tag
		return slotBusy, err
	}
	var first [3]uint32 // the number of results, the first one's operation and its status
	for i := range first {
		word, _, err := runtime.ReadUnsignedInt(r)
		if err != nil {
			return slotBusy, err
		}
		first[i] = word
	}
	taken := first[1] == uint32(nfsv4.OP_SEQUENCE) && first[2] == uint32(nfsv4.NFS4_OK)
	return judge4(taken, status), nil
}
