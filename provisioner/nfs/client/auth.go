package client

import (
	"bytes"
	"fmt"
	"os"

	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"
)

// authSys is the AUTH_SYS credential, which a server believes if it believes
// this machine.
func authSys(uid, gid uint32, groups []uint32) (rpcv2.OpaqueAuth, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	if len(host) > 255 {
		host = host[:255]
	}
	var body bytes.Buffer
	parms := rpcv2.AuthsysParms{Machinename: host, Uid: uid, Gid: gid, Gids: groups}
	if _, err := parms.WriteTo(&body); err != nil {
		return rpcv2.OpaqueAuth{}, fmt.Errorf("AUTH_SYS credential: %w", err)
	}
	return rpcv2.OpaqueAuth{Flavor: rpcv2.AUTH_SYS, Body: body.Bytes()}, nil
}
