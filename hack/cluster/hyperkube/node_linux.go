//go:build !nonode

package main

import (
	"context"

	"github.com/spf13/cobra"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func init() {
	components["kubelet"] = daemon(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) })
	components["kube-proxy"] = daemon(proxy.NewProxyCommand)
}
