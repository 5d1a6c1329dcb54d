package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner/hostpath"
	"github.com/berth-storage/berth/provisioner/hostpath/node"
)

const (
	// childCommand makes this program a contender instead of the benchmark.
	childCommand = "provision"

	// workers is how many claims the library and the bare client work on at a
	// time, as many as Berth does by default.
	workers = 32
	// libraryQPS lets the library send as much as it can; its users are mostly
	// left with client-go's 5 per second, or raise it to 20 or 100.
	libraryQPS = 1000
)

// runChild runs the library or the bare client until ctx ends.
func runChild(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: want %s or %s", childCommand, runLibrary, runBare)
	}
	f := flag.NewFlagSet(childCommand, flag.ContinueOnError)
	kubeconfig := f.String("kubeconfig", "", "")
	pool := f.String("pool", "", "")
	class := f.String("class", "", "")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	switch args[0] {
	case runLibrary:
		return runLibraryController(ctx, config, *pool)
	case runBare:
		return runBareClient(ctx, config, *class)
	}
	return fmt.Errorf("%s: unknown %q", childCommand, args[0])
}

// runLibraryController runs the library's controller around the driver, and
// the driver's own background work.
func runLibraryController(ctx context.Context, config *rest.Config, pool string) error {
	config.QPS, config.Burst = libraryQPS, libraryQPS
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	nodes, err := hostpath.NewLocal(node.Options{
		NodeName: nodeName, Pools: map[string][]string{"default": {pool}}, Limits: node.DefaultLimits, Log: logr.Discard(),
	})
	if err != nil {
		return err
	}
	driver, err := hostpath.New(hostpath.Options{Nodes: nodes, Node: fixedNode(ctx, client), Log: logr.Discard()})
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- driver.Run(ctx) }()
	klog.SetOutput(os.Stderr)
	controller.NewProvisionController(ctx, client, hostpath.Name, driver,
		controller.Threadiness(workers),
		controller.LeaderElection(false),
	).Run(ctx)
	return <-failed
}

// fixedNode reads the Node once; Berth has it in its cache.
func fixedNode(ctx context.Context, client kubernetes.Interface) func(context.Context, string) (*corev1.Node, error) {
	found, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	return func(context.Context, string) (*corev1.Node, error) { return found, err }
}

// capacityOf returns what a claim asks for.
func capacityOf(claim *corev1.PersistentVolumeClaim) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]}
}
