package agents

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// indexNode finds EndpointSlices by the nodes they name.
const indexNode = "berth.storage/node"

// +kubebuilder:rbac:groups=discovery.k8s.io,namespace=berth-system,resources=endpointslices,verbs=list;watch

// SetupIndex registers the index that Options.Reader needs.
func SetupIndex(ctx context.Context, indexer client.FieldIndexer) error {
	if err := indexer.IndexField(ctx, &discoveryv1.EndpointSlice{}, indexNode, nodesOf); err != nil {
		return fmt.Errorf("index EndpointSlices by node: %w", err)
	}
	return nil
}

func nodesOf(o client.Object) []string {
	endpoints, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	var nodes []string
	for _, e := range endpoints.Endpoints {
		if node := ptr.Deref(e.NodeName, ""); node != "" {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// endpoint is where the agent of a node is.
type endpoint struct {
	node, address string
	ready         bool
}

// find returns where the agent of node is; false when there is none. While a pod
// takes the place of another there are two: the one that is ready counts, or
// else that at the address in use.
func (a *Agents) find(ctx context.Context, node, inUse string) (endpoint, bool, error) {
	all, err := a.endpoints(ctx, client.MatchingFields{indexNode: node})
	if err != nil {
		return endpoint{}, false, err
	}
	all = slices.DeleteFunc(all, func(e endpoint) bool { return e.node != node })
	if len(all) == 0 {
		return endpoint{}, false, nil
	}
	return slices.MinFunc(all, func(x, y endpoint) int {
		return cmp.Or(first(x.ready, y.ready), first(x.address == inUse, y.address == inUse), cmp.Compare(x.address, y.address))
	}), true, nil
}

// first puts the one of two first for which something is true.
func first(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return -1
	}
	return 1
}

// endpoints lists those of the Service.
func (a *Agents) endpoints(ctx context.Context, options ...client.ListOption) ([]endpoint, error) {
	list := &discoveryv1.EndpointSliceList{}
	options = append(options, client.InNamespace(a.options.Namespace), client.UnsafeDisableDeepCopy)
	if err := a.options.Reader.List(ctx, list, options...); err != nil {
		return nil, fmt.Errorf("list the endpoints of service %s/%s: %w", a.options.Namespace, a.options.Service, err)
	}
	var all []endpoint
	for i := range list.Items {
		if list.Items[i].Labels[discoveryv1.LabelServiceName] != a.options.Service {
			continue
		}
		port := strconv.Itoa(a.port(list.Items[i].Ports))
		for _, e := range list.Items[i].Endpoints {
			node := ptr.Deref(e.NodeName, "")
			if node == "" || len(e.Addresses) == 0 {
				continue
			}
			all = append(all, endpoint{
				node:    node,
				address: net.JoinHostPort(e.Addresses[0], port),
				ready:   ptr.Deref(e.Conditions.Ready, true),
			})
		}
	}
	return all, nil
}

// port returns the port of endpoints that have ports: the one that is set, or the
// only one, or that of the name PortName.
func (a *Agents) port(ports []discoveryv1.EndpointPort) int {
	if a.options.Port != 0 {
		return a.options.Port
	}
	for _, p := range ports {
		if p.Port != nil && (len(ports) == 1 || ptr.Deref(p.Name, "") == PortName) {
			return int(*p.Port)
		}
	}
	return DefaultPort
}
