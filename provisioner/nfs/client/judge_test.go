package client

import (
	"bytes"
	"testing"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
)

func TestProbeTellsWhatBecameOfTheSlot(t *testing.T) {
	const sequence = uint32(nfsv4.OP_SEQUENCE)
	for name, test := range map[string]struct {
		status nfsv4.Nfsstat4
		words  words // number of results, operation, status, …
		want   verdict4
	}{
		"it was not seen before":           {nfsv4.NFS4_OK, words{1, sequence, 0}, slotTaken},
		"the old reply":                    {nfsv4.NFS4ERR_EXIST, words{3, sequence, 0, 0, 0}, slotTaken},
		"the old reply says that it waits": {nfsv4.NFS4ERR_DELAY, words{3, sequence, 0, 0, 0}, slotTaken},
		"not kept, of SEQUENCE":            {nfsv4.NFS4ERR_RETRY_UNCACHED_REP, words{1, sequence, 10068}, slotTaken},
		"not kept, of what follows":        {nfsv4.NFS4ERR_RETRY_UNCACHED_REP, words{2, sequence, 0, 0}, slotTaken},
		"not the same":                     {nfsv4.NFS4ERR_SEQ_FALSE_RETRY, words{1, sequence, 10076}, slotTaken},
		"under way":                        {nfsv4.NFS4ERR_DELAY, words{1, sequence, 10008}, slotBusy},
		"no such session":                  {nfsv4.NFS4ERR_BADSESSION, words{1, sequence, 10052}, slotLost},
		"out of step":                      {nfsv4.NFS4ERR_SEQ_MISORDERED, words{1, sequence, 10063}, slotLost},
		"something else":                   {nfsv4.NFS4ERR_SERVERFAULT, words{1, sequence, 10006}, slotRefused},
	} {
		var reply bytes.Buffer
		_, err := append(words{uint32(test.status), 0}, test.words...).WriteTo(&reply)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readProbe4(bytes.NewReader(reply.Bytes()))
		if got != test.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", name, got, err, test.want)
		}
	}
	for _, short := range []words{{}, {0}, {0, 0, 1}} {
		var reply bytes.Buffer
		_, _ = short.WriteTo(&reply)
		if _, err := readProbe4(bytes.NewReader(reply.Bytes())); err == nil {
			t.Errorf("a reply of %d words is one", len(short))
		}
	}
}
