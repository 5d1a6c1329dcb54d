package cli

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// checkedFile is what a check leaves in a volume while it runs.
const checkedFile = ".berth-check"

func newCheckVolumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-volume DIRECTORY",
		Short: "Write a file to a directory, read it back and remove it: what helm test does in a volume",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkVolume(args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "wrote a file to %s, read it back and removed it\n", args[0])
			return err
		},
	}
}

// checkVolume shows that the process may use a directory as an application would.
func checkVolume(path string) error {
	directory, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	defer directory.Close()
	content := make([]byte, 64<<10)
	_, _ = rand.Read(content) // it never fails
	if err := writeSynced(directory, content); err != nil {
		_ = directory.Remove(checkedFile) // it may not even be there
		return err
	}
	found, err := directory.ReadFile(checkedFile)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(found, content) {
		return fmt.Errorf("read back %s: it is not what was written", checkedFile)
	}
	if err := directory.Remove(checkedFile); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// writeSynced writes the file to the disk.
func writeSynced(directory *os.Root, content []byte) error {
	file, err := directory.Create(checkedFile)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	_, err = io.Copy(file, bytes.NewReader(content))
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", checkedFile, err)
	}
	return nil
}
