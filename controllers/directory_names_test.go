package controllers

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

func onHost(names ...string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: names}},
	}}}}
}

func local(path string, affinity *corev1.VolumeNodeAffinity) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}}, NodeAffinity: affinity,
	}}
}

func hostPath(path string, affinity *corev1.VolumeNodeAffinity) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}, NodeAffinity: affinity,
	}}
}

func onShare(server, path string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: server, Path: path}},
	}}
}

func provisioned(volume *corev1.PersistentVolume) *corev1.PersistentVolume {
	volume.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "example.com/other"}
	return volume
}

// TestWhoNamesADirectory: what the keys find and what is compared must come to the same.
func TestWhoNamesADirectory(t *testing.T) {
	onNode := Directory{Path: "/srv/berth/ns/data", Node: "node-a"}
	pooled := onNode
	pooled.Base = "/srv/berth"
	exported := Directory{Path: "/export/ns/data", Base: "/export/", Server: "nas.example.com"}
	share := Directory{Path: "/export/ns/data", Server: "nas.example.com"}
	inPool := local("/srv/berth/ns/data/in", nil)
	inPool.Annotations = map[string]string{"berth.storage/path": "ns/data/in"}
	for name, tt := range map[string]struct {
		d      Directory
		volume *corev1.PersistentVolume
		want   bool
	}{
		"the same, on that node":               {onNode, local("/srv/berth/ns/data", onHost("a")), true},
		"the same, on another node":            {onNode, local("/srv/berth/ns/data", onHost("b")), false},
		"on several nodes, this is one":        {onNode, local("/srv/berth/ns/data", onHost("b", "a")), true},
		"with a slash at the end":              {onNode, hostPath("/srv/berth/ns/data/", onHost("a")), true},
		"not clean":                            {onNode, hostPath("/srv//berth/./ns/x/../data", nil), true},
		"without affinity it is on every node": {onNode, hostPath("/srv/berth/ns/data", nil), true},
		"an affinity without terms":            {onNode, hostPath("/srv/berth/ns/data", &corev1.VolumeNodeAffinity{}), true},
		"nobody knows on which node":           {Directory{Path: "/srv/berth/ns/data"}, local("/srv/berth/ns/data", onHost("b")), true},
		"one above":                            {onNode, local("/srv/berth/ns", onHost("a")), true},
		"the pool":                             {onNode, local("/srv/berth", onHost("a")), true},
		"the root":                             {onNode, hostPath("/", nil), true},
		"the pool, known as such":              {pooled, local("/srv/berth/", onHost("a")), false},
		"above the pool":                       {pooled, hostPath("/srv", nil), false},
		"the root above the pool":              {pooled, hostPath("/", nil), false},
		"the pool, by a provisioner":           {pooled, provisioned(local("/srv/berth", nil)), true},
		"above the pool, by a provisioner":     {pooled, provisioned(hostPath("/srv", nil)), true},
		"one above, in the pool":               {pooled, local("/srv/berth/ns", onHost("a")), true},
		"the same, in the pool":                {pooled, local("/srv/berth/ns/data", onHost("a")), true},
		"one inside, in the pool":              {pooled, local("/srv/berth/ns/data/x", onHost("a")), true},
		"the export, known as such":            {exported, onShare("nas.example.com", "/export"), false},
		"one above, in the export":             {exported, onShare("nas.example.com", "/export/ns"), true},
		"one above, on another node":           {onNode, local("/srv/berth", onHost("b")), false},
		"one inside":                           {onNode, local("/srv/berth/ns/data/a/b", onHost("a")), true},
		"one inside, of Berth":                 {onNode, inPool, true},
		"one inside, on another node":          {onNode, local("/srv/berth/ns/data/a/b", onHost("b")), false},
		"a longer name":                        {onNode, local("/srv/berth/ns/data-2", onHost("a")), false},
		"a shorter name":                       {onNode, local("/srv/berth/ns/dat", onHost("a")), false},
		"one beside it":                        {onNode, local("/srv/berth/ns/other", onHost("a")), false},
		"none":                                 {onNode, &corev1.PersistentVolume{}, false},
		"an NFS share's":                       {onNode, onShare("nas.example.com", "/srv/berth/ns/data"), false},
		"the same on the share":                {share, onShare("NAS.example.com.", "/export/ns/data/"), true},
		"the export":                           {share, onShare("nas.example.com", "/export"), true},
		"inside on the share":                  {share, onShare("nas.example.com", "/export/ns/data/sub"), true},
		"the server's short name":              {share, onShare("nas", "/export/ns/data"), true},
		"an address, which may be the server":  {share, onShare("10.0.0.5", "/export/ns/data"), true},
		"another server":                       {share, onShare("nas2.example.com", "/export/ns/data"), false},
		"another directory of the share":       {share, onShare("nas.example.com", "/export/ns/data2"), false},
		"a node's, of the path of the share's": {share, local("/export/ns/data", nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			var node *corev1.Node
			if tt.d.Node != "" {
				node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: tt.d.Node, Labels: map[string]string{corev1.LabelHostname: "a"}}}
			}
			n := &DirectoryNames{Drivers: provisioner.NewRegistry()}
			if got := n.names(tt.volume, tt.d, node); got != tt.want {
				t.Errorf("names = %v", got)
			}
			lookups := directoryLookups(tt.d.Path)
			if found := slices.ContainsFunc(directoryKeys(tt.volume), func(key string) bool { return slices.Contains(lookups, key) }); tt.want && !found {
				t.Errorf("keys %q are not among %q", directoryKeys(tt.volume), lookups)
			}
		})
	}
}

func TestServersThatMayBeTheSame(t *testing.T) {
	for pair, want := range map[[2]string]bool{
		{"10.0.0.5", "10.0.0.5"}:        true,
		{"10.0.0.5", "::ffff:10.0.0.5"}: true,
		{"10.0.0.5", "10.0.0.6"}:        false,
		{"nas", "nas2"}:                 false,
		{"nas", "10.0.0.5"}:             true,
	} {
		if got := maySameServer(pair[0], pair[1]) && maySameServer(pair[1], pair[0]); got != want {
			t.Errorf("%q: %v", pair, got)
		}
	}
}

func TestKeysOfVolumesOfAPoolEndAtThePool(t *testing.T) {
	volume := local("/var/lib/berth/ns/data", nil)
	volume.Annotations = map[string]string{"berth.storage/path": "ns/data"}
	if got, want := directoryKeys(volume), []string{"is:/var/lib/berth/ns/data", "in:/var/lib/berth/ns"}; !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
}

func TestBasesOfVolumes(t *testing.T) {
	for _, tt := range []struct{ named, inside, want string }{
		{"/srv/berth/ns/data", "ns/data", "/srv/berth"},
		{"/srv/berth/ns/data/", "ns/data", "/srv/berth"},
		{"/data", "data", "/"},
		{"/srv/berth/ns/data", "", ""},
		{"/srv/berth/ns/data", "other", ""},
		{"", "data", ""},
	} {
		volume := local(tt.named, nil)
		volume.Annotations = map[string]string{"berth.storage/path": tt.inside}
		if got := baseOf(volume); got != tt.want {
			t.Errorf("%s, which is %q of it: base %q, want %q", tt.named, tt.inside, got, tt.want)
		}
	}
}

func TestWhatIsLeftBehindMayBeAdopted(t *testing.T) {
	for name, tt := range map[string]struct {
		phase  corev1.PersistentVolumePhase
		policy corev1.PersistentVolumeReclaimPolicy
		want   bool
	}{
		"bound":                  {corev1.VolumeBound, corev1.PersistentVolumeReclaimRetain, false},
		"available":              {corev1.VolumeAvailable, corev1.PersistentVolumeReclaimRetain, false},
		"not looked at yet":      {"", corev1.PersistentVolumeReclaimRetain, false},
		"released, and retained": {corev1.VolumeReleased, corev1.PersistentVolumeReclaimRetain, true},
		"released, to be ended":  {corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, false},
		"failed to be ended":     {corev1.VolumeFailed, corev1.PersistentVolumeReclaimDelete, false},
	} {
		volume := local("/srv/data", nil)
		volume.Status.Phase, volume.Spec.PersistentVolumeReclaimPolicy = tt.phase, tt.policy
		if got := isLeftBehind(volume); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
