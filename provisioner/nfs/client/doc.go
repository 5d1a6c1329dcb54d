// Package client speaks NFS from user space: no mount, no privilege, no cgo. It
// does what somebody needs who makes, describes and removes directories on a
// server, and keeps small files there: it is no replacement for a mount where
// data is read and written.
//
//	c, err := client.Dial(ctx, client.Options{Server: "nas", Share: "/export"})
//	defer c.Close()
//	root, err := c.Root(ctx)
//	err = root.Mkdir(ctx, "volume", 0o770)
//	volume, err := root.Open(ctx, "volume")
//	err = volume.SetAttr(ctx, client.SetAttr{Mode: new(uint32(0o2770))})
//
// # Contexts and retries
//
// Every call ends when its context does; a context without a deadline gets
// Options.Timeout. Until then a call that the server asks to repeat later
// (NFS3ERR_JUKEBOX, NFS4ERR_DELAY, NFS4ERR_GRACE) is repeated, and so is a call
// without an answer, if it changes nothing or nothing of it was sent. Otherwise
// the error wraps ErrOutcomeUnknown: a call that changes something is sent once.
//
// The server may carry it out later. The next change of the same entry waits for
// that, and fails with ErrBusy, without having been sent, when that takes long.
// In version 4.1 the session tells when the server is done with a call. In
// the others only its late reply does: 5 seconds after the connection was lost,
// or when a minute has gone by, nobody waits any longer.
//
// # Durability
//
// Servers make directory operations and attributes durable before they answer,
// unless the export is async; file content is written with FILE_SYNC.
//
// # Names
//
// A name is one component and may hold any byte but "/" and NUL. Servers
// resolve "..", some even above the export, so the client refuses it along with
// "." and the empty name.
package client
