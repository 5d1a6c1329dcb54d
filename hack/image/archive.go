package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// image is a container image of one layer.
type image struct {
	Ref        string // such as registry.example/berth:dev
	Arch       string // as GOARCH has it
	Created    string // as RFC 3339 has it; epoch when empty
	Labels     map[string]string
	User       string
	Entrypoint []string
	Cmd        []string
	Files      []file
}

// file is something in an image. It belongs to root.
type file struct {
	Path    string // without a leading slash
	Mode    int64
	Content []byte
	Link    string // what a symbolic link points to; the rest is for files
	Folder  bool
}

// imageConfig is the part of the image specification that is used here.
type imageConfig struct {
	Architecture string          `json:"architecture"`
	Variant      string          `json:"variant,omitempty"`
	OS           string          `json:"os"`
	Created      string          `json:"created"`
	Config       containerConfig `json:"config"`
	RootFS       rootFS          `json:"rootfs"`
	History      []history       `json:"history"`
}

type containerConfig struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`

	Labels map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created string `json:"created"`
}

// manifest is an entry of manifest.json.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// epoch is the time of every file in an image, and of an image that has no
// time of its own, so that the same files make the same image.
const epoch = "1970-01-01T00:00:00Z"

// write writes the image as "docker save" does, which docker, podman, containerd
// and kind load. The same image is always the same bytes.
func (i image) write(w io.Writer) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	config, err := i.config(layer)
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", digest(layer)+".tar"
	list, err := json.Marshal([]manifest{{Config: configName, RepoTags: []string{i.Ref}, Layers: []string{layerName}}})
	if err != nil {
		return err
	}
	return writeTar(w, []file{
		{Path: "manifest.json", Mode: 0o644, Content: list},
		{Path: configName, Mode: 0o644, Content: config},
		{Path: layerName, Mode: 0o644, Content: layer},
	})
}

// config is what the image says of itself, in JSON, given its layer.
func (i image) config(layer []byte) ([]byte, error) {
	created := cmp.Or(i.Created, epoch)
	return json.Marshal(imageConfig{
		Architecture: i.Arch,
		Variant:      variants[i.Arch],
		OS:           "linux",
		Created:      created,
		Config: containerConfig{
			User:       i.User,
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Entrypoint: i.Entrypoint,
			Cmd:        i.Cmd,
			WorkingDir: "/",
			Labels:     i.Labels,
		},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{"sha256:" + digest(layer)}},
		History: []history{{Created: created}},
	})
}

func (i image) layer() ([]byte, error) {
	files := slices.SortedFunc(slices.Values(i.Files), func(a, b file) int { return strings.Compare(a.Path, b.Path) })
	var b bytes.Buffer
	err := writeTar(&b, files)
	return b.Bytes(), err
}

func digest(content []byte) string {
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

func writeTar(w io.Writer, files []file) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		if err := t.WriteHeader(f.header()); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if _, err := t.Write(f.Content); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return t.Close()
}

func (f file) header() *tar.Header {
	h := &tar.Header{Name: f.Path, Mode: f.Mode, Format: tar.FormatUSTAR}
	switch {
	case f.Folder:
		h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
	}
	return h
}
