package wire

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// maxVolume is how long a volume's name may be, as in package directory.
	maxVolume = 240
	// sealBytes is how much of the digest a seal is made of.
	sealBytes = 16
)

// VolumeID is what CSI calls a volume by. Its text is <pool>/<volume>/<seal>.
// It holds no path, so none can be smuggled in by it.
type VolumeID struct {
	Pool   string
	Volume string
	// Seal is a digest over what the ownership marker must say. An id whose
	// seal does not agree with the marker is of another volume, or forged.
	Seal string
}

// NewVolumeID returns the id of the volume that was made for a claim at path.
func NewVolumeID(pool, volume string, claim types.UID, path string) VolumeID {
	return VolumeID{Pool: pool, Volume: volume, Seal: Seal(claim, path)}
}

// Seal returns the digest over the claim's UID and the path in the pool.
func Seal(claim types.UID, path string) string {
	sum := sha256.Sum256([]byte(string(claim) + "\x00" + path))
	return base64.RawURLEncoding.EncodeToString(sum[:sealBytes])
}

// String returns the id as it travels.
func (id VolumeID) String() string { return id.Pool + "/" + id.Volume + "/" + id.Seal }

// Check says whether id is one that can be: names that are safe as components
// of a path, and a seal that Seal may have made.
func (id VolumeID) Check() error {
	if problems := validation.IsDNS1123Label(id.Pool); len(problems) > 0 {
		return fmt.Errorf("pool name %q: %s", clip(id.Pool), strings.Join(problems, ", "))
	}
	if len(id.Volume) > maxVolume {
		return fmt.Errorf("volume name %q: %d bytes long, at most %d are allowed", clip(id.Volume), len(id.Volume), maxVolume)
	}
	if problems := validation.IsDNS1123Subdomain(id.Volume); len(problems) > 0 {
		return fmt.Errorf("volume name %q: %s", clip(id.Volume), strings.Join(problems, ", "))
	}
	if seal, err := base64.RawURLEncoding.Strict().DecodeString(id.Seal); err != nil || len(seal) != sealBytes {
		return errors.New("the seal is none")
	}
	return nil
}

// ParseVolumeID reads what String wrote, and nothing else.
func ParseVolumeID(s string) (VolumeID, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return VolumeID{}, fmt.Errorf("volume id %q: want <pool>/<volume>/<seal>", clip(s))
	}
	id := VolumeID{Pool: parts[0], Volume: parts[1], Seal: parts[2]}
	if err := id.Check(); err != nil {
		return VolumeID{}, fmt.Errorf("volume id %q: %w", clip(s), err)
	}
	return id, nil
}

// VolumeName returns the name under which a volume is kept that CSI calls name:
// name itself, when it could be a PersistentVolume's, and a digest of it
// otherwise, since CSI allows nearly any character.
func VolumeName(name string) string {
	if len(name) <= maxVolume && len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(name)))
}

// clip bounds how much of what somebody sent an error repeats.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
