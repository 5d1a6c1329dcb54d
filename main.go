// Berth provisions volumes for Kubernetes claims. See README.md.
package main

import (
	"os"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-storage/berth/internal/cli"
)

func main() {
	if err := cli.NewCommand().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		os.Exit(1)
	}
}
