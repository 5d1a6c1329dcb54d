package controlplane

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// ReadAudit yields the events of an audit log in the order written, without
// holding more than one in memory. The API server may still be writing: a last line
// that is incomplete is left out. After an error the sequence ends.
func ReadAudit(path string) iter.Seq2[auditv1.Event, error] {
	return func(yield func(auditv1.Event, error) bool) {
		f, err := os.Open(path) //nolint:gosec // the caller names the log
		if err != nil {
			yield(auditv1.Event{}, err)
			return
		}
		defer f.Close()
		lines := bufio.NewReaderSize(f, 1<<20)
		for {
			line, err := lines.ReadBytes('\n')
			if errors.Is(err, io.EOF) {
				return
			}
			var event auditv1.Event
			if err == nil {
				err = json.Unmarshal(line, &event)
			}
			if err != nil {
				yield(auditv1.Event{}, fmt.Errorf("read audit log %s: %w", path, err))
				return
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}
