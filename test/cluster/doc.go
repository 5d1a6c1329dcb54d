// Package cluster runs a small Kubernetes cluster with real nodes: the control
// plane of package controlplane, and kubelets with containerd that run pods.
//
// The machine stays as it was. [Main] starts the program a second time in network, mount and
// process id namespaces of its own; addresses, routes, bridges and mounts exist only in
// there, and the kernel ends every process and mount of the cluster with the first
// process in there, however that ends. Two clusters may run at once. What namespaces do
// not hold, control groups and a temporary folder, a watchdog outside removes.
//
// In there, each node is a process id namespace again, with mounts, host name and network
// of its own:
//
//	10.96.0.1     the API server, at the address of the Service "kubernetes",
//	              so that pods reach it without kube-proxy
//	10.77.0.1     the bridge between the nodes
//	10.77.0.10+N  node N
//	10.244.N.0/24 the pods of node N
//
// A node keeps /mnt, /var/lib and /var/log across PowerOff and Start, and nothing else, as
// a machine keeps its disk. It runs what it has the images of: there is no network to
// pull any from. There is no cluster DNS and no kube-proxy.
package cluster
