// Command cluster builds and runs a development control plane: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler, compiled from Go
// modules, without containers, root rights or fixed ports.
//
//	go -C hack/cluster run . build     compile the binaries (ten minutes the first time)
//	go -C hack/cluster run . assets    print their folder, for KUBEBUILDER_ASSETS
//	go -C hack/cluster run . up        run a control plane until Ctrl-C
//	go -C hack/cluster run . down      end it from elsewhere
//	go -C hack/cluster run . pin V     keep the modules of another version
//
// The binaries come from the module in the folder hyperkube, which stands alone so
// that k8s.io/kubernetes and its replace directives stay out of Berth's go.mod.
// Its go.mod is of the newest Kubernetes; KUBERNETES=1.34 in the environment makes it
// another one, without the node's components.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berth-storage/berth/test/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "Build and run a development control plane",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(buildCommand(), assetsCommand(), pinCommand(), upCommand(), downCommand())
	return root
}

func buildCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Compile the control plane's binaries, unless they are up to date",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := newBuild(out)
			if err != nil {
				return err
			}
			return b.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder for the binaries (default <repository>/bin/k8s/<version>)")
	return cmd
}

func assetsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "assets",
		Short: "Print the folder to use as KUBEBUILDER_ASSETS, building it first when needed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := assets(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Println(dir)
			return nil
		},
	}
}

func pinCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pin VERSION",
		Short: "Write the module file and the checksums of a version into hyperkube/, to be kept",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return pin(cmd.Context(), args[0])
		},
	}
}

// assets returns the folder of binaries that the environment names, else that of
// an up-to-date build.
func assets(ctx context.Context) (string, error) {
	if os.Getenv(controlplane.AssetsEnv) != "" {
		return controlplane.FindAssets()
	}
	b, err := newBuild("")
	if err != nil {
		return "", err
	}
	return b.out, b.run(ctx)
}

func upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a new control plane, without nodes, until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return up(cmd.Context(), o)
		},
	}
	dirFlag(cmd, &o.dir)
	cmd.Flags().IntVar(&o.controllerManagerQPS, "kube-controller-manager-qps", 0,
		"requests per second that kube-controller-manager allows itself (default: its own)")
	return cmd
}

func downCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End the control plane that up runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return down(cmd.Context(), dir)
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}

func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "folder for state, logs and kubeconfig (default <repository>/bin/cluster)")
}

// outputFolder makes a folder below bin of the repository, or the one given,
// which Git ignores.
func outputFolder(given string, elements ...string) (string, error) {
	if given != "" {
		dir, err := filepath.Abs(given)
		if err != nil {
			return "", err
		}
		return dir, os.MkdirAll(dir, 0o750)
	}
	root, err := controlplane.RepositoryRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(append([]string{root, "bin"}, elements...)...)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(root, "bin", ".gitignore"), []byte("*\n"), 0o600)
}
