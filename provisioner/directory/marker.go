package directory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-storage/berth/provisioner"
)

// OnDelete is what becomes of a volume's directory when the volume is deleted.
type OnDelete string

// The values of OnDelete.
const (
	// OnDeleteDelete moves the directory to the trash, which is purged.
	OnDeleteDelete OnDelete = "delete"
	// OnDeleteArchive moves it to the archive, where it stays.
	OnDeleteArchive OnDelete = "archive"
	// OnDeleteRetain leaves it where it is, without an owner.
	OnDeleteRetain OnDelete = "retain"
)

// careOf orders the values by how much they keep.
var careOf = map[OnDelete]int{OnDeleteDelete: 1, OnDeleteArchive: 2, OnDeleteRetain: 3}

// Valid reports whether o is one of the known values.
func (o OnDelete) Valid() bool { return careOf[o] > 0 }

// Careful returns which of o and other keeps more. An unknown value, the empty
// one too, counts for nothing.
func (o OnDelete) Careful(other OnDelete) OnDelete {
	if careOf[other] > careOf[o] {
		return other
	}
	return o
}

const (
	markerVersion = 1
	markerSuffix  = ".json"
	// maxMarker bounds what is read of a marker. The longest one written holds
	// a path of maxPath bytes, which JSON may lengthen sixfold.
	maxMarker = 64 << 10
	// maxVolumeName leaves room for markerSuffix in a file's name.
	maxVolumeName = 240
)

// Marker says who owns a directory. It is Berth's proof of ownership and its
// record of intent: it exists before the directory does, and as long.
type Marker struct {
	Version int `json:"version"`
	// Volume is the name of the PersistentVolume.
	Volume string `json:"volume"`
	// ClaimNamespace, Claim and ClaimUID name the claim it was made for.
	ClaimNamespace string    `json:"claimNamespace"`
	Claim          string    `json:"claim"`
	ClaimUID       types.UID `json:"claimUID"`
	Class          string    `json:"class"`
	SizeBytes      int64     `json:"sizeBytes"`
	// Pool is the name of the pool.
	Pool string `json:"pool"`
	// Path is where the directory is, relative to the base.
	Path     string   `json:"path"`
	OnDelete OnDelete `json:"onDelete"`
	Mode     uint32   `json:"mode"`
	// UID and GID are nil when the owner is left to the filesystem.
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
	// Adopted says that the directory was there before the volume.
	Adopted bool `json:"adopted"`
	// ParentsMade is how many directories above the volume's, counted from the
	// deepest, were made for a pattern, and go once they are empty.
	ParentsMade int       `json:"parentsMade"`
	Created     time.Time `json:"created"`
	// Quota is what the class said about enforcing the size.
	Quota QuotaMode `json:"quota,omitempty"`
	// Project is the project id that the limit belongs to, or 0. It stays in
	// the marker, and the volume may regain its limit, when the filesystem can't
	// enforce it for the time being.
	Project uint32 `json:"project,omitempty"`
	// Unenforced says why the size is not enforced, and is empty when it is.
	Unenforced string `json:"unenforced,omitempty"`
	// Unfinished says that no Create has succeeded yet, so that nobody can be
	// using the directory, whatever its mode and its owner are. It is written
	// where the mode of a new directory does not tell (plainParents). Only the
	// marker of a volume that is just being made, or of an attempt that has failed
	// halfway, holds it: versions that don't know it can read all others.
	Unfinished bool `json:"unfinished,omitempty"`
	// Rights says what of Mode, UID and GID the directory has not got, as the
	// Create that returned this marker has found it; empty when it has all.
	Rights string `json:"-"`
}

// Record returns what the marker says, in the words of the driver contract. Its
// Path is still that below the base.
func (m Marker) Record() provisioner.Record {
	return provisioner.Record{
		Volume:   m.Volume,
		Claim:    types.NamespacedName{Namespace: m.ClaimNamespace, Name: m.Claim},
		ClaimUID: m.ClaimUID,
		Created:  m.Created,
		Path:     m.Path,
	}
}

// made returns the directories that ParentsMade counts, the deepest first.
func (m Marker) made() []string {
	above := ancestors(m.Path)
	var made []string
	for i := len(above) - 1; i >= 0 && len(made) < m.ParentsMade; i-- {
		made = append(made, above[i])
	}
	return made
}

// checkVolume says whether volume can be the name of a PersistentVolume that
// Berth serves: one safe component that leaves room for a suffix.
func checkVolume(volume string) error {
	if len(volume) > maxVolumeName {
		return fmt.Errorf("volume name %s: %d bytes long, at most %d are allowed", shown(volume), len(volume), maxVolumeName)
	}
	if problems := validation.IsDNS1123Subdomain(volume); len(problems) > 0 {
		return fmt.Errorf("volume name %s: %s", shown(volume), strings.Join(problems, ", "))
	}
	return nil
}

// parseMarker reads the marker of volume, strictly: what it does not understand
// it does not act on.
func parseMarker(volume string, data []byte) (Marker, error) {
	var m Marker
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		var version struct{ Version int }
		if json.Unmarshal(data, &version) == nil && version.Version > markerVersion {
			return Marker{}, fmt.Errorf("written by a later version of Berth (%d)", version.Version)
		}
		return Marker{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Marker{}, errors.New("more follows the marker")
	}
	switch {
	case m.Version != markerVersion:
		return Marker{}, fmt.Errorf("version %d, known is %d", m.Version, markerVersion)
	case m.Volume != volume:
		return Marker{}, fmt.Errorf("is that of volume %s", shown(m.Volume))
	case m.ClaimUID == "":
		return Marker{}, errors.New("names no claim")
	case !m.OnDelete.Valid():
		return Marker{}, fmt.Errorf("onDelete %s is unknown", shown(string(m.OnDelete)))
	case m.Quota != "" && !m.Quota.Valid():
		return Marker{}, fmt.Errorf("quota %s is unknown", shown(string(m.Quota)))
	case m.ParentsMade < 0 || m.ParentsMade > strings.Count(m.Path, "/"):
		return Marker{}, fmt.Errorf("parentsMade %d does not fit the path", m.ParentsMade)
	}
	return m, CheckPath(m.Path)
}

// readMarker returns the marker of volume, or an error that wraps
// fs.ErrNotExist when there is none. One that can't be read because of what the
// filesystem answers is damaged if it is known to be there; otherwise it may be
// the directory that is.
func (s *session) readMarker(ctx context.Context, volume string) (Marker, error) {
	m, err := readMarker(ctx, s.volumes, volume)
	if err == nil {
		s.index.read(volume)
	} else if unreadable(err) && s.index.knows(volume) {
		return Marker{}, fmt.Errorf("%w: %w", ErrDamagedMarker, err)
	}
	return m, err
}

// readMarker is the same without what is known.
func readMarker(ctx context.Context, volumes Dir, volume string) (Marker, error) {
	data, err := volumes.ReadFile(ctx, volume+markerSuffix, maxMarker)
	if isDamage(err) {
		return Marker{}, fmt.Errorf("%w: volume %s: it is not a file of at most %d bytes: %w", ErrDamagedMarker, volume, maxMarker, err)
	}
	if err != nil {
		return Marker{}, fmt.Errorf("read the marker of volume %s: %w", volume, err)
	}
	m, err := parseMarker(volume, data)
	if err != nil {
		return Marker{}, fmt.Errorf("%w: volume %s: %w", ErrDamagedMarker, volume, err)
	}
	return m, nil
}

// markerFile returns where in a pool the marker of volume is.
func markerFile(volume string) string {
	return adminName + "/" + volumesName + "/" + volume + markerSuffix
}

// writeMarker makes m durable.
func writeMarker(ctx context.Context, volumes Dir, m Marker) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the marker of volume %s: %w", m.Volume, err)
	}
	if err := volumes.WriteFile(ctx, m.Volume+markerSuffix, append(data, '\n')); err != nil {
		return fmt.Errorf("write the marker of volume %s: %w", m.Volume, err)
	}
	return nil
}
