package cli

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and which commit, when, and by which Go it was built from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), describeBuild(buildInfo()))
			return err
		},
	}
}

// describeBuild says what Go has recorded of a build: the version from git's
// tags, and the commit. Nothing is passed to the linker, so a binary of "go
// install" says the same as one of a release.
func describeBuild(info *debug.BuildInfo) string {
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	var details []string
	if commit := settings["vcs.revision"]; commit != "" {
		if settings["vcs.modified"] == "true" {
			commit += " with changes"
		}
		details = append(details, "commit "+commit, settings["vcs.time"])
	}
	details = append(details, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
	return fmt.Sprintf("berth %s (%s)", mainVersion(info), strings.Join(details, ", "))
}

// buildVersion is the version of this program.
func buildVersion() string {
	return mainVersion(buildInfo())
}

func mainVersion(info *debug.BuildInfo) string {
	return cmp.Or(info.Main.Version, "(devel)")
}

func buildInfo() *debug.BuildInfo {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info
	}
	return &debug.BuildInfo{}
}
