package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Media types of the image specification.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor points to content by its digest.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// ociManifest is one image, for one architecture.
type ociManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// ociIndex is a list of images, or of indexes.
type ociIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// layout is an OCI image layout: images for several architectures under one
// reference.
type layout struct {
	blobs []file
	index ociIndex
	name  descriptor // of the index
}

// newLayout puts images of one reference together. The same images make the same
// layout, in whatever order they come.
func newLayout(images []image) (*layout, error) {
	if len(images) == 0 {
		return nil, fmt.Errorf("an image index needs at least one image")
	}
	images = slices.SortedFunc(slices.Values(images), func(a, b image) int { return strings.Compare(a.Arch, b.Arch) })
	l := &layout{index: ociIndex{SchemaVersion: 2, MediaType: typeIndex, Annotations: images[0].Labels}}
	for _, i := range images {
		d, err := l.add(i)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i.Arch, err)
		}
		l.index.Manifests = append(l.index.Manifests, d)
	}
	var err error
	if l.name, err = l.addJSON(typeIndex, l.index); err != nil {
		return nil, err
	}
	ref := images[0].Ref
	l.name.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": ref[strings.LastIndex(ref, ":")+1:],
		"io.containerd.image.name":          ref, // what ctr names it
	}
	return l, nil
}

// add adds an image, and returns what points to its manifest.
func (l *layout) add(i image) (descriptor, error) {
	layer, err := i.layer()
	if err != nil {
		return descriptor{}, err
	}
	config, err := i.config(layer)
	if err != nil {
		return descriptor{}, err
	}
	packed, err := compress(layer)
	if err != nil {
		return descriptor{}, err
	}
	d, err := l.addJSON(typeManifest, ociManifest{
		SchemaVersion: 2,
		MediaType:     typeManifest,
		Config:        l.addBlob(typeConfig, config),
		Layers:        []descriptor{l.addBlob(typeLayer, packed)},
		Annotations:   i.Labels,
	})
	d.Platform = &platform{Architecture: i.Arch, OS: "linux", Variant: variants[i.Arch]}
	return d, err
}

func (l *layout) addJSON(mediaType string, content any) (descriptor, error) {
	encoded, err := json.Marshal(content)
	if err != nil {
		return descriptor{}, err
	}
	return l.addBlob(mediaType, encoded), nil
}

func (l *layout) addBlob(mediaType string, content []byte) descriptor {
	l.blobs = append(l.blobs, file{Path: "blobs/sha256/" + digest(content), Mode: 0o644, Content: content})
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest(content), Size: len(content)}
}

// digest is what the layout's image will be known by in a registry.
func (l *layout) digest() string {
	return l.name.Digest
}

// write writes the layout as a tar archive, which skopeo, crane, "ctr images
// import", "podman load" and, since version 25, "docker load" take.
func (l *layout) write(w io.Writer) error {
	root, err := json.Marshal(ociIndex{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{l.name}})
	if err != nil {
		return err
	}
	return writeTar(w, append([]file{
		{Path: "oci-layout", Mode: 0o644, Content: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Path: "index.json", Mode: 0o644, Content: root},
	}, l.blobs...))
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}
