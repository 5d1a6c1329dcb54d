package cli

import (
	"flag"
	"log"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

// addLoggingFlags adds the flags of the logger, with defaults for people: errors
// that are part of the work need no stack traces, and times are read.
func addLoggingFlags(f *pflag.FlagSet, logging *zap.Options) {
	goFlags := flag.NewFlagSet("", flag.ContinueOnError)
	logging.BindFlags(goFlags)
	f.AddGoFlagSet(goFlags)
	for name, value := range map[string]string{"zap-stacktrace-level": "panic", "zap-time-encoding": "rfc3339nano"} {
		if err := f.Set(name, value); err != nil {
			panic(err) // the flag or the value is misspelt above
		}
	}
}

// setLogger makes the logger that the flags ask for that of all parts of the
// process, so that every line has the same form. What the standard library
// prints is mostly about strangers who connect to a port, and for those who debug.
func setLogger(logging *zap.Options) {
	logger := zap.New(zap.UseFlagOptions(logging))
	ctrl.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))
	log.SetFlags(0)
	log.SetOutput(lineWriter{logger.WithName("go")})
}

// lineWriter logs each line that is written to it.
type lineWriter struct{ log logr.Logger }

// Write implements io.Writer.
func (w lineWriter) Write(line []byte) (int, error) {
	w.log.V(1).Info(strings.TrimSpace(string(line)))
	return len(line), nil
}
