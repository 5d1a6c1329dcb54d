// Package nfs is the driver nfs.berth.storage: volumes are directories on NFS
// exports. Server and share are parameters of the class, so one process serves
// as many servers as there are classes, without mounting any of them: it speaks
// NFS itself (package client). What that client does not speak (Kerberos, TLS,
// RDMA) is reached through a mount that the administrator gives the process
// (Options.Mounts).
//
// A server that stops answering delays its own volumes only. A gate for each
// server bounds how many calls are under way, and while the server is silent
// lets through one call now and then, to see whether it is back.
package nfs
