package hostpath

import (
	"os"
	"strconv"
	"strings"

	storagev1 "k8s.io/api/storage/v1"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/request"
)

// parameters are a StorageClass's, parsed.
type parameters struct {
	request.Directory
	pool       string
	volumeType string
}

// The values of the parameter volumeType.
const (
	typeLocal    = "local"
	typeHostPath = "hostPath"
)

// defaults are what a class that says nothing gets. Directories belong to whom
// Berth runs as: root, as a rule.
var defaults = request.DirectoryDefaults(map[string]string{
	"pool":       "default",
	"volumeType": typeLocal,
	"uid":        strconv.Itoa(os.Geteuid()),
	"gid":        strconv.Itoa(os.Getegid()),
})

// parseParameters reads the parameters of class. Its errors are infeasible.
func parseParameters(class *storagev1.StorageClass) (parameters, error) {
	read := request.ReadParameters(class, defaults)
	p := parameters{
		pool:       read.Value("pool"),
		volumeType: read.OneOf("volumeType", typeLocal, typeHostPath),
		Directory:  read.Directory(),
	}
	if err := read.Err(); err != nil {
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
