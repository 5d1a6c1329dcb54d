package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
)

const (
	// maxSlots is how many calls a session carries at once, if the server
	// agrees.
	maxSlots = 16
	// callbackProgram is never called: there is no back channel.
	callbackProgram = 0x40000000
	// defaultLease is for servers that do not say theirs.
	defaultLease = 90 * time.Second
)

// state4 is what a server keeps for this client: a client id, and a session in
// version 4.1.
type state4 struct {
	clientID uint64
	session  [16]byte
	slots    chan *slot4
	highest  uint32
	lease    time.Duration
	used     atomic.Int64
	// life ends when it is of no use any more: the server does not know it, or
	// nobody needs it.
	life context.Context
	drop context.CancelFunc
}

func (s *state4) touch() { s.used.Store(time.Now().UnixNano()) }

// current returns the state, which is made when there is none.
func (p *protocol4) current(ctx context.Context) (*state4, error) {
	select {
	case p.making <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.making }()
	if s := p.state.Load(); s != nil && s.life.Err() == nil {
		s.touch()
		return s, nil
	}
	var (
		s    *state4
		err  error
		wait backoff
	)
	for {
		s, err = p.establish(ctx)
		if err == nil {
			break
		}
		if !beginAnew4(err) || !wait.sleep(ctx) {
			return nil, err
		}
	}
	s.touch()
	p.state.Store(s)
	go p.renew(s) //nolint:gosec,contextcheck // outlives the call that made the state
	return s, nil
}

// beginAnew4 reports whether a server that answers err wants to be introduced to
// this client once more: it asks for time, or forgot what it has just said.
func beginAnew4(err error) bool {
	return errors.Is(err, errStateLost) || hasStatus(err, uint32(nfsv4.NFS4ERR_DELAY), uint32(nfsv4.NFS4ERR_GRACE),
		uint32(nfsv4.NFS4ERR_STALE_CLIENTID), uint32(nfsv4.NFS4ERR_SEQ_MISORDERED))
}

// establish introduces this client. A new verifier makes the server forget what
// it kept for it before.
func (p *protocol4) establish(ctx context.Context) (*state4, error) {
	var verifier [8]byte
	if _, err := rand.Read(verifier[:]); err != nil {
		return nil, err
	}
	s := &state4{}
	s.life, s.drop = context.WithCancel(context.Background())
	introduce := p.setClientID
	if p.minor == 1 {
		introduce = p.createSession
	}
	if err := introduce(ctx, s, verifier); err != nil {
		s.drop()
		return nil, err
	}
	s.lease = p.leaseOf(ctx, s)
	return s, nil
}

// leaseOf asks how long the server keeps a state that is not renewed.
func (p *protocol4) leaseOf(ctx context.Context, s *state4) time.Duration {
	reply, err := p.within(ctx, s, nil, []io.WriterTo{&nfsv4.NfsArgop4_OP_PUTROOTFH{}, getattr4(leaseBits4)})
	if err != nil {
		return defaultLease
	}
	a, err := attributesFrom4(reply)
	if err != nil || a.lease == 0 {
		return defaultLease
	}
	return time.Duration(a.lease) * time.Second
}

// renew keeps a state alive for as long as it is used.
func (p *protocol4) renew(s *state4) {
	ticker := time.NewTicker(s.lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.lease)
		if time.Since(time.Unix(0, s.used.Load())) > max(p.nfs.options.IdleTimeout, s.lease) {
			s.drop()
			p.destroy(ctx, s)
		} else if err := p.renewOnce(ctx, s); hasStatus(err, statusesLost4...) {
			s.drop()
		}
		cancel()
	}
}

func (p *protocol4) renewOnce(ctx context.Context, s *state4) error {
	var operations []io.WriterTo // in version 4.1 SEQUENCE is enough
	if p.minor == 0 {
		operations = append(operations, &nfsv4.NfsArgop4_OP_RENEW{Oprenew: nfsv4.Renew4args{Clientid: s.clientID}})
	}
	reply, err := p.within(ctx, s, nil, operations)
	if err != nil {
		return err
	}
	return error4("renew", "", reply.status)
}

// statusesLost4 say that the server forgot the client, or what it had open.
var statusesLost4 = []uint32{
	uint32(nfsv4.NFS4ERR_EXPIRED), uint32(nfsv4.NFS4ERR_STALE_CLIENTID), uint32(nfsv4.NFS4ERR_STALE_STATEID), uint32(nfsv4.NFS4ERR_BAD_STATEID),
	uint32(nfsv4.NFS4ERR_BAD_SEQID), uint32(nfsv4.NFS4ERR_ADMIN_REVOKED), uint32(nfsv4.NFS4ERR_BADSESSION), uint32(nfsv4.NFS4ERR_DEADSESSION),
}

// setClientID introduces a client of version 4.0.
func (p *protocol4) setClientID(ctx context.Context, s *state4, verifier [8]byte) error {
	reply, err := p.plain(ctx, nil, &nfsv4.NfsArgop4_OP_SETCLIENTID{Opsetclientid: nfsv4.Setclientid4args{
		Client:   nfsv4.NfsClientId4{Verifier: verifier, Id: p.owner},
		Callback: nfsv4.CbClient4{CbProgram: callbackProgram, CbLocation: nfsv4.Netaddr4{NaRNetid: "tcp", NaRAddr: "0.0.0.0.0.0"}},
	}})
	if err == nil {
		err = error4("setclientid", "", reply.status)
	}
	if err != nil {
		return err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_SETCLIENTID](reply)
	if err != nil {
		return err
	}
	ok, is := result.Opsetclientid.(*nfsv4.Setclientid4res_NFS4_OK)
	if !is {
		return errGarbled
	}
	s.clientID = ok.Resok4.Clientid
	reply, err = p.plain(ctx, nil, &nfsv4.NfsArgop4_OP_SETCLIENTID_CONFIRM{OpsetclientidConfirm: nfsv4.SetclientidConfirm4args{
		Clientid: ok.Resok4.Clientid, SetclientidConfirm: ok.Resok4.SetclientidConfirm,
	}})
	if err != nil {
		return err
	}
	return error4("setclientid_confirm", "", reply.status)
}

// createSession introduces a client of version 4.1.
func (p *protocol4) createSession(ctx context.Context, s *state4, verifier [8]byte) error {
	sequenceID, err := p.exchangeID(ctx, s, verifier)
	if err != nil {
		return err
	}
	channel := nfsv4.ChannelAttrs4{CaMaxrequestsize: maxReply, CaMaxresponsesize: maxReply, CaMaxresponsesizeCached: 4096, CaMaxoperations: 32, CaMaxrequests: maxSlots}
	reply, err := p.plain(ctx, nil, &nfsv4.NfsArgop4_OP_CREATE_SESSION{OpcreateSession: nfsv4.CreateSession4args{
		CsaClientid: s.clientID, CsaSequence: sequenceID, CsaForeChanAttrs: channel, CsaBackChanAttrs: channel, CsaCbProgram: callbackProgram,
		CsaSecParms: []nfsv4.CallbackSecParms4{&nfsv4.CallbackSecParms4_AUTH_NONE{}},
	}})
	if err == nil {
		err = error4("create_session", "", reply.status)
	}
	if err != nil {
		return err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_CREATE_SESSION](reply)
	if err != nil {
		return err
	}
	ok, is := result.OpcreateSession.(*nfsv4.CreateSession4res_NFS4_OK)
	if !is {
		return errGarbled
	}
	s.session = ok.CsrResok4.CsrSessionid
	slots := min(max(ok.CsrResok4.CsrForeChanAttrs.CaMaxrequests, 1), maxSlots)
	s.slots, s.highest = make(chan *slot4, slots), slots-1
	for i := range slots {
		s.slots <- &slot4{number: i}
	}
	return p.reclaimComplete(ctx, s)
}

// reclaimComplete says that nothing was held before, so that there is nothing to
// reclaim. Until it has heard that, a server lets nobody open a file.
func (p *protocol4) reclaimComplete(ctx context.Context, s *state4) error {
	var wait backoff
	for {
		reply, err := p.within(ctx, s, nil, []io.WriterTo{&nfsv4.NfsArgop4_OP_RECLAIM_COMPLETE{}})
		switch {
		case err != nil:
			return err
		case reply.status == nfsv4.NFS4ERR_COMPLETE_ALREADY: // its answer was lost
			return nil
		case !later4(reply.status):
			return error4("reclaim_complete", "", reply.status)
		case !wait.sleep(ctx):
			return busy(ctx, error4("reclaim_complete", "", reply.status))
		}
	}
}

func (p *protocol4) exchangeID(ctx context.Context, s *state4, verifier [8]byte) (uint32, error) {
	reply, err := p.plain(ctx, nil, &nfsv4.NfsArgop4_OP_EXCHANGE_ID{OpexchangeId: nfsv4.ExchangeId4args{
		EiaClientowner:  nfsv4.ClientOwner4{CoVerifier: verifier, CoOwnerid: p.owner},
		EiaFlags:        nfsv4.EXCHGID4_FLAG_USE_NON_PNFS,
		EiaStateProtect: &nfsv4.StateProtect4A_SP4_NONE{},
	}})
	if err == nil {
		err = error4("exchange_id", "", reply.status)
	}
	if err != nil {
		return 0, err
	}
	result, err := result4[*nfsv4.NfsResop4_OP_EXCHANGE_ID](reply)
	if err != nil {
		return 0, err
	}
	ok, is := result.OpexchangeId.(*nfsv4.ExchangeId4res_NFS4_OK)
	if !is {
		return 0, errGarbled
	}
	s.clientID = ok.EirResok4.EirClientid
	return ok.EirResok4.EirSequenceid, nil
}

// destroy tells the server to forget the client. It forgets by itself, later.
func (p *protocol4) destroy(ctx context.Context, s *state4) {
	if p.minor == 0 {
		return
	}
	for _, operation := range []io.WriterTo{
		&nfsv4.NfsArgop4_OP_DESTROY_SESSION{OpdestroySession: nfsv4.DestroySession4args{DsaSessionid: s.session}},
		&nfsv4.NfsArgop4_OP_DESTROY_CLIENTID{OpdestroyClientid: nfsv4.DestroyClientid4args{DcaClientid: s.clientID}},
	} {
		if _, err := p.plain(ctx, nil, operation); err != nil {
			return
		}
	}
}

// plain makes a call without a session.
func (p *protocol4) plain(ctx context.Context, c change, operations ...io.WriterTo) (*reply4, error) {
	r := p.request(c, operations)
	record, late, err := p.nfs.call(ctx, r)
	if late != nil {
		p.fence.awaitLate(c, late)
	}
	if err != nil {
		return nil, err
	}
	return decodeReply4(record, r, len(operations))
}

func (p *protocol4) request(c change, operations []io.WriterTo) request {
	return request{program: programNFS, version: 4, procedure: 1, credential: p.credential, again: c == nil,
		args: compound4{minor: p.minor, operations: operations}}
}

func decodeReply4(record []byte, r request, operations int) (*reply4, error) {
	results, err := decodeReply(record, r)
	if err != nil {
		return nil, err
	}
	reply, err := readReply4(results, operations)
	if err != nil {
		return nil, garbled(r, err)
	}
	return reply, nil
}

// unsupported4 translates the ways to say that there is no such version.
func unsupported4(err error) error {
	if hasStatus(err, uint32(nfsv4.NFS4ERR_MINOR_VERS_MISMATCH), uint32(nfsv4.NFS4ERR_OP_ILLEGAL)) {
		return fmt.Errorf("%w: %w", syscall.EPROTONOSUPPORT, err)
	}
	return err
}
