package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// inAll returns the sample image for all architectures.
func inAll() []image {
	var all []image
	for _, arch := range architectures {
		i := sample()
		i.Arch = arch
		i.Labels = map[string]string{"org.opencontainers.image.version": "v1"}
		all = append(all, i)
	}
	return all
}

func writeLayout(t *testing.T, images []image) (string, map[string][]byte) {
	t.Helper()
	l, err := newLayout(images)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := l.write(&b); err != nil {
		t.Fatal(err)
	}
	return l.digest(), readTar(t, &b)
}

// TestLayoutLeadsFromItsIndexToEveryFile goes the way of whoever loads it, and
// checks each digest and size.
func TestLayoutLeadsFromItsIndexToEveryFile(t *testing.T) {
	name, files := writeLayout(t, inAll())
	follow := func(d descriptor, into any) {
		t.Helper()
		content, ok := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
		if !ok || len(content) != d.Size || "sha256:"+digest(content) != d.Digest {
			t.Fatalf("%+v points to %d bytes of another digest", d, len(content))
		}
		if into != nil {
			if err := json.Unmarshal(content, into); err != nil {
				t.Fatal(err)
			}
		}
	}
	var root, list ociIndex
	if err := json.Unmarshal(files["index.json"], &root); err != nil {
		t.Fatal(err)
	}
	if len(root.Manifests) != 1 || root.Manifests[0].Digest != name {
		t.Fatalf("index.json is %+v, want one image, %s", root, name)
	}
	if got := root.Manifests[0].Annotations["io.containerd.image.name"]; got != sample().Ref {
		t.Errorf("the image is named %q, want %q", got, sample().Ref)
	}
	follow(root.Manifests[0], &list)
	var got []string
	for _, d := range list.Manifests {
		var m ociManifest
		follow(d, &m)
		var c imageConfig
		follow(m.Config, &c)
		follow(m.Layers[0], nil)
		if c.Architecture != d.Platform.Architecture || c.Config.User != "65532" || c.Config.Labels["org.opencontainers.image.version"] != "v1" {
			t.Errorf("config %+v under platform %+v", c, d.Platform)
		}
		got = append(got, d.Platform.Architecture+d.Platform.Variant)
	}
	if diff := cmp.Diff([]string{"amd64", "armv7", "arm64v8", "ppc64le", "riscv64", "s390x"}, got); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
}

// TestUnpackedLayerHasTheDigestThatTheConfigSays: containerd checks this one.
func TestUnpackedLayerHasTheDigestThatTheConfigSays(t *testing.T) {
	i := sample()
	layer, err := i.layer()
	if err != nil {
		t.Fatal(err)
	}
	packed, err := compress(layer)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tar.NewReader(r).Next(); err != nil {
		t.Fatal(err)
	}
	config, err := i.config(layer)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(config, []byte(digest(layer))) {
		t.Errorf("config %s lacks the digest of the unpacked layer", config)
	}
}

func TestSameImagesMakeTheSameLayoutInAnyOrder(t *testing.T) {
	all := inAll()
	first, _ := writeLayout(t, all)
	all[0], all[3] = all[3], all[0]
	if second, _ := writeLayout(t, all); first != second {
		t.Errorf("digests %s and %s", first, second)
	}
}

func TestAnUnknownArchitectureIsRefused(t *testing.T) {
	if _, err := parseArchitectures("amd64,mips"); err == nil || !strings.Contains(err.Error(), "mips") {
		t.Errorf("error %v, want one that names mips", err)
	}
	if got, err := parseArchitectures("s390x,amd64,s390x"); err != nil || !cmp.Equal(got, []string{"amd64", "s390x"}) {
		t.Errorf("%v, %v", got, err)
	}
}
