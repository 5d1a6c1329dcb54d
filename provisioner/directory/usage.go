package directory

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// VolumeUsage is how much a volume holds of what it may.
type VolumeUsage struct {
	// Volume is the name of the PersistentVolume.
	Volume string
	Claim  types.NamespacedName
	Class  string
	// Enforced says that the filesystem keeps the volume within LimitBytes.
	// Otherwise Reason says why not, and the numbers are 0.
	Enforced bool
	Reason   string
	QuotaUsage
}

// Usage yields how much each volume holds. An error is that of the volume
// yielded with it; one without a volume ends the sequence. A pool that was never
// used has no volumes, and damaged markers are left to Volumes.
func (p *Pool) Usage(ctx context.Context) iter.Seq2[VolumeUsage, error] {
	return func(yield func(VolumeUsage, error) bool) {
		s, err := p.enter(ctx, false)
		if errors.Is(err, ErrNotInitialised) {
			return
		}
		if err != nil {
			yield(VolumeUsage{}, err)
			return
		}
		defer s.close()
		for e, err := range s.volumes.ReadDir(ctx) {
			if err != nil {
				yield(VolumeUsage{}, fmt.Errorf("list the markers: %w", err))
				return
			}
			volume, ok := volumeOf(e.Name)
			if !ok || s.index.unreadableMarker(volume) != nil {
				continue
			}
			usage, err := s.usage(ctx, volume)
			if notExist(err) || isDamage(err) { // deleted meanwhile, or reported elsewhere
				continue
			}
			if !yield(usage, err) {
				return
			}
		}
	}
}

// UsageOf reports how much volume holds. The error wraps fs.ErrNotExist or
// ErrNotInitialised when there is no such volume.
func (p *Pool) UsageOf(ctx context.Context, volume string) (VolumeUsage, error) {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return VolumeUsage{}, err
	}
	defer leave()
	return s.usage(ctx, volume)
}

// usage fails as far as the marker can't be read; what else is in the way of an
// answer is one.
func (s *session) usage(ctx context.Context, volume string) (VolumeUsage, error) {
	m, err := s.readMarker(ctx, volume)
	if err != nil {
		return VolumeUsage{}, err
	}
	u := VolumeUsage{
		Volume: m.Volume,
		Claim:  types.NamespacedName{Namespace: m.ClaimNamespace, Name: m.Claim},
		Class:  m.Class,
		Reason: strings.TrimPrefix(m.QuotaState(), "none: "),
	}
	if !m.enforced() {
		return u, nil
	}
	u.QuotaUsage, u.Reason, err = s.measure(ctx, m)
	u.Enforced = err == nil && u.Reason == ""
	return u, err
}

// measure asks the filesystem, or returns the reason why there is nothing to
// ask for.
func (s *session) measure(ctx context.Context, m Marker) (_ QuotaUsage, reason string, _ error) {
	if s.quota == nil {
		return QuotaUsage{}, "quotas are switched off", nil
	}
	dir, err := openPath(ctx, s.root, m.Path)
	if notExist(err) || notDirectory(err) {
		return QuotaUsage{}, "the directory is gone", nil
	}
	if err != nil {
		return QuotaUsage{}, "", err
	}
	defer dir.Close()
	err = s.quota.Check(ctx, s.root)
	var id uint32
	if err == nil {
		id, err = s.quota.Project(ctx, dir)
	}
	if err == nil && id != m.Project {
		err = lostProject(m)
	}
	var usage QuotaUsage
	if err == nil {
		usage, err = s.quota.Usage(ctx, dir, id)
	}
	if reason, unsupported := quotaUnsupported(err); unsupported {
		return QuotaUsage{}, reason, nil
	}
	if err == nil && usage.LimitBytes == 0 {
		return QuotaUsage{}, "somebody has removed the limit", nil
	}
	return usage, "", err
}
