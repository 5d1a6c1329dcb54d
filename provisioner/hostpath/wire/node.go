package wire

// MetaNode is the key of the name of the Node that a call is meant for, with
// every call to an agent. An agent of another node refuses the call: a pod's
// address may pass from node to node faster than word of it gets around, and a
// directory made on the wrong node would be lost.
const MetaNode = "berth-node"
