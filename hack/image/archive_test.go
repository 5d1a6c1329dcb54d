package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() image {
	return image{
		Ref:        "example.com/sample:1",
		Arch:       "arm64",
		User:       "65532",
		Entrypoint: []string{"/sample"},
		Files: []file{
			{Path: "sample", Mode: 0o755, Content: []byte("code")},
			{Path: "etc", Mode: 0o755, Folder: true},
			{Path: "etc/link", Link: "../sample"},
		},
	}
}

func TestSameFilesMakeTheSameImageInAnyOrder(t *testing.T) {
	var a, b bytes.Buffer
	if err := sample().write(&a); err != nil {
		t.Fatal(err)
	}
	other := sample()
	slices.Reverse(other.Files)
	if err := other.write(&b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of the same files differ")
	}
}

// TestDigestsAreThoseOfTheContent: what loads an image checks them.
func TestDigestsAreThoseOfTheContent(t *testing.T) {
	var b bytes.Buffer
	if err := sample().write(&b); err != nil {
		t.Fatal(err)
	}
	files := readTar(t, &b)
	var manifests []manifest
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		t.Fatal(err)
	}
	if len(manifests) != 1 || len(manifests[0].Layers) != 1 {
		t.Fatalf("manifests %+v, want one with one layer", manifests)
	}
	var config imageConfig
	if err := json.Unmarshal(files[manifests[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifests[0].Layers[0]]
	if diff := cmp.Diff([]string{"sha256:" + digest(layer)}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("digests (-want +got):\n%s", diff)
	}
	if config.Architecture != "arm64" || config.Config.User != "65532" {
		t.Errorf("config %+v", config)
	}
	content := readTar(t, bytes.NewReader(layer))
	if string(content["sample"]) != "code" {
		t.Errorf("layer holds %q", content)
	}
}

func readTar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}
