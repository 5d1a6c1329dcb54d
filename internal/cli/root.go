// Package cli is Berth's command line: it reads flags and wires the parts
// together, and decides nothing itself.
package cli

import "github.com/spf13/cobra"

// NewCommand returns the root command.
func NewCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Berth provisions volumes for Kubernetes claims",
		SilenceUsage:  true,
		SilenceErrors: false,
	}
	root.AddCommand(newControllerCommand(), newAgentCommand(), newCheckVolumeCommand(), newVersionCommand())
	return root
}
