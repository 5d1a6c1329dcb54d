package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// applyClasses applies a file of StorageClasses. Only root may give directories
// to root, which is the default; for anybody else the demo adds to each class
// who is to own its directories.
func (d *demo) applyClasses(ctx context.Context, file string) error {
	if os.Getuid() == 0 {
		return d.show(ctx, "kubectl apply -f "+file)
	}
	text, err := os.ReadFile(filepath.Join(d.root, file)) //nolint:gosec // a file of the repository
	if err != nil {
		return err
	}
	owned, err := withOwner(text, os.Getuid(), os.Getgid())
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	copied := filepath.Join(d.dir, filepath.Base(file)+".json")
	if err := os.WriteFile(copied, owned, 0o600); err != nil { //nolint:gosec // in a folder of its own
		return err
	}
	d.Say("You are not root, who owns volumes by default, so in a copy of %s\neach class has the parameters uid: \"%d\" and gid: \"%d\".", file, os.Getuid(), os.Getgid())
	return d.show(ctx, "kubectl apply -f "+copied)
}

// withOwner returns the StorageClasses in a YAML file, as a JSON list, with the
// parameters uid and gid added.
func withOwner(text []byte, uid, gid int) ([]byte, error) {
	list := storagev1.StorageClassList{TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "StorageClassList"}}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var class storagev1.StorageClass
		err := decoder.Decode(&class)
		if errors.Is(err, io.EOF) {
			return json.Marshal(list)
		}
		if err != nil {
			return nil, err
		}
		if class.Parameters == nil {
			class.Parameters = map[string]string{}
		}
		class.Parameters["uid"], class.Parameters["gid"] = strconv.Itoa(uid), strconv.Itoa(gid)
		list.Items = append(list.Items, class)
	}
}
