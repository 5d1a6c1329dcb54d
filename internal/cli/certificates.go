package cli

import (
	"errors"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"

	"github.com/berth-storage/berth/internal/agenttls"
)

// certificateFiles are the flags for a certificate in files.
type certificateFiles struct {
	certificate, key, authorities string
}

func (c *certificateFiles) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.certificate, "tls-cert-file", "", "file of the certificate to show the other side, in PEM; it is read anew when it changes")
	f.StringVar(&c.key, "tls-key-file", "", "file of its key")
	f.StringVar(&c.authorities, "tls-ca-file", "", "file of the certificates of the authorities to trust")
}

func (c *certificateFiles) given() bool { return c.certificate != "" }

func (c *certificateFiles) validate() error {
	if given := c.given(); given != (c.key != "") || given != (c.authorities != "") {
		return errors.New("--tls-cert-file, --tls-key-file and --tls-ca-file: give all three or none")
	}
	return nil
}

func (c *certificateFiles) source(log logr.Logger) *agenttls.Files {
	return agenttls.NewFiles(c.certificate, c.key, c.authorities, log)
}
