package cluster

import (
	"os"
	"strings"

	"github.com/berth-storage/berth/test/cluster/images"
)

const containerdSocket = "/run/containerd/containerd.sock"

// The runtime may run where root lacks CAP_SYS_RESOURCE, as on many CI machines:
// without restrict_oom_score_adj no sandbox would start there.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + images.Pause + `"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI"
    conf_dir = "$CONF/cni"
`

const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": true,
    "hairpinMode": true,
    "ipam": {
      "type": "host-local",
      "dataDir": "/run/cni",
      "ranges": [[{"subnet": "$PODS"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
`

// The lease is renewed every quarter of its duration, so that a node that is off
// is noticed in seconds. Images are never collected: there is nowhere to pull them from.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
containerRuntimeEndpoint: unix://` + containerdSocket + `
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
nodeStatusUpdateFrequency: 3s
nodeLeaseDurationSeconds: 8
`

func (s nodeSpec) writeConfiguration() error {
	values := strings.NewReplacer(
		"$CNI", s.CNI,
		"$CONF", s.conf(""),
		"$PODS", podRange(s.Index),
		"$CGROUP", s.Cgroup,
	)
	for name, text := range map[string]string{
		"containerd.toml":        containerdConfig,
		"cni/10-bridge.conflist": cniConfig,
		"kubelet.yaml":           kubeletConfig,
	} {
		if err := os.WriteFile(s.conf(name), []byte(values.Replace(text)), 0o600); err != nil {
			return err
		}
	}
	return nil
}
