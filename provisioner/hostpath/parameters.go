package hostpath

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
)

// parameters are a StorageClass's, parsed.
type parameters struct {
	pool       string
	volumeType string
	pattern    *directory.Pattern
	onDelete   directory.OnDelete
	adopt      bool
	mode       uint32
	uid, gid   uint32
}

// The values of the parameter volumeType.
const (
	typeLocal    = "local"
	typeHostPath = "hostPath"
)

// defaults are what a class that says nothing gets, and name the parameters
// there are. Directories belong to whom Berth runs as: root, as a rule.
var defaults = map[string]string{
	"pool":        "default",
	"volumeType":  typeLocal,
	"pathPattern": directory.DefaultPattern,
	"onDelete":    string(directory.OnDeleteDelete),
	"mode":        "0770",
	"uid":         strconv.Itoa(os.Geteuid()),
	"gid":         strconv.Itoa(os.Getegid()),
	"existing":    "refuse",
}

// parseParameters reads the parameters of class. Its errors are infeasible.
func parseParameters(class *storagev1.StorageClass) (parameters, error) {
	values := maps.Clone(defaults)
	for _, name := range slices.Sorted(maps.Keys(class.Parameters)) {
		value := class.Parameters[name]
		if _, known := defaults[name]; !known {
			return parameters{}, badParameter(name, value, "there is no such parameter; known are %s", strings.Join(slices.Sorted(maps.Keys(defaults)), ", "))
		}
		values[name] = value
	}
	r := &reader{values: values}
	p := parameters{
		pool:       values["pool"],
		volumeType: r.oneOf("volumeType", typeLocal, typeHostPath),
		onDelete: directory.OnDelete(r.oneOf("onDelete",
			string(directory.OnDeleteDelete), string(directory.OnDeleteArchive), string(directory.OnDeleteRetain))),
		adopt: r.oneOf("existing", "refuse", "adopt") == "adopt",
		mode:  r.number("mode", 8, 0o7777, "write an octal mode such as 0770, at most 7777"),
		// The highest id means "leave as it is" to chown(2).
		uid: r.number("uid", 10, math.MaxUint32-1, "write a number from 0 to 4294967294"),
		gid: r.number("gid", 10, math.MaxUint32-1, "write a number from 0 to 4294967294"),
	}
	if r.err != nil {
		return parameters{}, r.err
	}
	var err error
	if p.pattern, err = directory.ParsePattern(values["pathPattern"]); err != nil {
		return parameters{}, err
	}
	if p.volumeType == typeHostPath && len(class.MountOptions) > 0 {
		// kubelet fails to mount such a volume: pkg/volume/hostpath says that
		// it does not support mount options; pkg/volume/local does.
		return parameters{}, provisioner.Infeasible("StorageClass field mountOptions", strings.Join(class.MountOptions, ","),
			"kubelet does not support mount options for volumeType %s; leave them out or use volumeType %s", typeHostPath, typeLocal)
	}
	return p, nil
}

// reader keeps the first error.
type reader struct {
	values map[string]string
	err    error
}

func (r *reader) oneOf(name string, allowed ...string) string {
	value := r.values[name]
	if !slices.Contains(allowed, value) {
		r.fail(name, "choose one of %s", strings.Join(allowed, ", "))
	}
	return value
}

func (r *reader) number(name string, base int, most uint64, fix string) uint32 {
	n, err := strconv.ParseUint(r.values[name], base, 32)
	if err != nil || n > most {
		r.fail(name, "%s", fix)
	}
	return uint32(n)
}

func (r *reader) fail(name, format string, args ...any) {
	if r.err == nil {
		r.err = badParameter(name, r.values[name], format, args...)
	}
}

func badParameter(name, value, format string, args ...any) error {
	return provisioner.Infeasible(fmt.Sprintf("StorageClass parameter %s", name), value, format, args...)
}
