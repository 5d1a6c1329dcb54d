package client_test

import (
	"bytes"
	"encoding/binary"
)

// writer writes XDR by hand: what the tests say is independent of go-xdr.
type writer struct{ bytes.Buffer }

func (w *writer) u32(values ...uint32) {
	for _, v := range values {
		w.Write(binary.BigEndian.AppendUint32(nil, v))
	}
}

func (w *writer) u64(values ...uint64) {
	for _, v := range values {
		w.Write(binary.BigEndian.AppendUint64(nil, v))
	}
}

func (w *writer) fixed(b []byte) {
	w.Write(b)
	w.Write(make([]byte, (4-len(b)%4)%4))
}

func (w *writer) opaque(b []byte) {
	w.u32(uint32(len(b)))
	w.fixed(b)
}

// reader reads XDR by hand. What is not there reads as zero.
type reader struct{ b []byte }

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b = nil
		return make([]byte, min(n, 1<<20))
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) u32() uint32  { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64  { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) flag() bool   { return r.u32() != 0 }
func (r *reader) text() string { return string(r.opaque()) }

func (r *reader) fixed(n int) []byte {
	b := r.take(n)
	r.take((4 - n%4) % 4)
	return b
}

func (r *reader) opaque() []byte { return r.fixed(int(r.u32())) }
