package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// Expectation is what a PersistentVolume says about itself. It is believed only
// as far as the marker agrees.
type Expectation struct {
	ClaimUID types.UID
	// Path is relative to the base.
	Path string
	// OnDelete is what the PersistentVolume says; what keeps more, this or the
	// marker, is done.
	OnDelete OnDelete
}

// Delete moves the volume's directory out of the way, as its marker's OnDelete
// says, and forgets the volume. The trash is emptied by Run.
//
// A volume that has no marker and no directory was deleted before. A directory
// without a marker for this volume and this claim is refused with ErrNotOwned,
// and anything but a plain directory with ErrNotADirectory; both mean that
// nothing was touched.
func (p *Pool) Delete(ctx context.Context, volume string, expect Expectation) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.readMarker(ctx, volume)
	if notExist(err) {
		if err := p.settleMissing(ctx, s, volume); err != nil {
			return fmt.Errorf("delete volume %s: %w", volume, err)
		}
		return s.checkGone(ctx, volume, expect)
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: not touching %s: %w", volume, shown(expect.Path), err)
	}
	if m.ClaimUID != expect.ClaimUID {
		return fmt.Errorf("delete volume %s: the PersistentVolume names claim UID %s, the marker %s: %w", volume, shown(string(expect.ClaimUID)), m.ClaimUID, ErrNotOwned)
	}
	if m.Path != expect.Path {
		return fmt.Errorf("delete volume %s: the PersistentVolume names %s, the marker %s: %w", volume, shown(expect.Path), shown(m.Path), ErrNotOwned)
	}
	if err := p.checkOwner(s, m); err != nil {
		return fmt.Errorf("delete volume %s: %w", volume, err)
	}
	if err := p.lift(ctx, s, m); err != nil {
		return fmt.Errorf("delete volume %s: %w", volume, err)
	}
	switch m.OnDelete.Careful(expect.OnDelete) {
	case OnDeleteRetain:
		p.log.Info("Left the directory of a deleted volume in place", "volume", volume, "pool", p.options.Name, "path", m.Path)
		return p.forget(ctx, s, m)
	case OnDeleteArchive:
		return p.archive(ctx, s, m)
	default:
		return p.trash(ctx, s, m)
	}
}

// Discard drops a volume as long as its directory is empty, or was adopted, in
// which case it stays; otherwise it fails with provisioner.ErrNotEmpty and
// changes nothing. A volume without a marker is no error.
func (p *Pool) Discard(ctx context.Context, volume string) error {
	return p.withMarker(ctx, volume, func(s *session, m Marker) error {
		if m.Adopted {
			return p.forget(ctx, s, m)
		}
		if err := p.discard(ctx, s, m); err != nil {
			return fmt.Errorf("discard volume %s: %w", volume, err)
		}
		return p.forget(ctx, s, m)
	})
}

// discard removes the directory of m, if it is empty.
func (p *Pool) discard(ctx context.Context, s *session, m Marker) error {
	if s.limits(m) {
		// A volume with data keeps its limit.
		if empty, err := s.isEmpty(ctx, m.Path); err != nil {
			return kindError(err)
		} else if !empty {
			return provisioner.ErrNotEmpty
		}
		if err := p.lift(ctx, s, m); err != nil {
			return err
		}
	}
	err := s.removeEmpty(ctx, m.Path)
	p.addUnknown(s, m, err)
	if notEmpty(err) {
		return errors.Join(provisioner.ErrNotEmpty, s.restore(ctx, m))
	}
	return kindError(err)
}

// Has reports whether the pool has a marker of volume. An error means that the
// pool can't say.
func (p *Pool) Has(ctx context.Context, volume string) (bool, error) {
	found := false
	err := p.withMarker(ctx, volume, func(*session, Marker) error {
		found = true
		return nil
	})
	return found, err
}

// Lookup returns the marker of volume, or an error that wraps fs.ErrNotExist or
// ErrNotInitialised when there is none.
func (p *Pool) Lookup(ctx context.Context, volume string) (Marker, error) {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return Marker{}, err
	}
	defer leave()
	return s.readMarker(ctx, volume)
}

// enterVolume is enter for an operation on a volume that should exist.
func (p *Pool) enterVolume(ctx context.Context, volume string) (_ *session, leave func(), err error) {
	if err := checkVolume(volume); err != nil {
		return nil, nil, err
	}
	unlock, err := p.volumes.lock(ctx, volume)
	if err != nil {
		return nil, nil, err
	}
	s, err := p.enter(ctx, false)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return s, func() { s.close(); unlock() }, nil
}

// withMarker calls f with the marker of volume, if it has one.
func (p *Pool) withMarker(ctx context.Context, volume string, f func(*session, Marker) error) error {
	s, leave, err := p.enterVolume(ctx, volume)
	if errors.Is(err, ErrNotInitialised) {
		return nil
	}
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.readMarker(ctx, volume)
	if notExist(err) {
		return p.settleMissing(ctx, s, volume)
	}
	if err != nil {
		return err
	}
	if err := p.checkOwner(s, m); err != nil {
		return err
	}
	return f(s, m)
}

// checkGone is Delete without a marker.
func (s *session) checkGone(ctx context.Context, volume string, expect Expectation) error {
	if err := CheckPath(expect.Path); err != nil {
		return fmt.Errorf("delete volume %s: no ownership marker, and %w: %w", volume, err, ErrNotOwned)
	}
	if expect.OnDelete == OnDeleteRetain {
		s.index.release(expect.Path, volume)
		return nil // the marker is all there is to remove
	}
	if other, _ := s.index.overlapping(expect.Path, volume); other != "" {
		return nil // other volumes are there by now, so this one is gone
	}
	there, err := s.exists(ctx, expect.Path)
	if err != nil {
		return fmt.Errorf("delete volume %s: no ownership marker: %w", volume, kindError(err))
	}
	if !there {
		s.index.release(expect.Path, volume) // somebody removed the marker by hand
		return nil
	}
	return fmt.Errorf("delete volume %s: no ownership marker for %s, not touching it: %w", volume, shown(expect.Path), ErrNotOwned)
}

// exists reports whether there is anything at path.
func (s *session) exists(ctx context.Context, path string) (bool, error) {
	above, leaf := splitPath(path)
	parent, err := openPath(ctx, s.root, above)
	if err == nil {
		_, err = parent.Lstat(ctx, leaf)
		_ = parent.Close()
	}
	if notExist(err) {
		return false, nil
	}
	return err == nil, err
}

// checkOwner refuses to act on a marker whose path, by another marker, belongs
// to another volume. A marker that an administrator has restored meanwhile is
// taken into account.
func (p *Pool) checkOwner(s *session, m Marker) error {
	if s.index.ownerOf(m.Path) == "" {
		p.index(s.index, s.identity.ID, m)
	}
	if owner := s.index.ownerOf(m.Path); owner != m.Volume {
		return fmt.Errorf("volume %s: another marker claims %s: %w", m.Volume, shown(m.Path), ErrNotOwned)
	}
	return nil
}

// trash moves the directory of m to the trash and forgets the volume.
func (p *Pool) trash(ctx context.Context, s *session, m Marker) error {
	trash, err := s.admin.Open(ctx, trashName)
	if err != nil {
		return fmt.Errorf("open the trash: %w", err)
	}
	defer trash.Close()
	defer p.wakeUp() // also after a failure, which may come after the move
	if _, err := p.moveAway(ctx, s, m, trash, trashEntry(m.Volume)); err != nil {
		return fmt.Errorf("move volume %s to the trash: %w", m.Volume, err)
	}
	return p.forget(ctx, s, m)
}

// archive moves the directory of m to the archive, puts the marker beside it,
// and forgets the volume.
func (p *Pool) archive(ctx context.Context, s *session, m Marker) error {
	archive, err := s.admin.Open(ctx, archiveName)
	if err != nil {
		return fmt.Errorf("open the archive: %w", err)
	}
	defer archive.Close()
	name, err := p.moveToArchive(ctx, s, m, archive)
	if err != nil {
		return fmt.Errorf("move volume %s to the archive: %w", m.Volume, err)
	}
	if name != "" {
		if err := p.keepMarker(ctx, s, m, archive, name+markerSuffix); err != nil {
			return fmt.Errorf("keep the marker of volume %s: %w", m.Volume, err)
		}
	}
	return p.forget(ctx, s, m)
}

// moveToArchive returns the name that the directory of m has in the archive, or
// "" when there is no directory.
func (p *Pool) moveToArchive(ctx context.Context, s *session, m Marker, archive Dir) (string, error) {
	for n := 1; ; n++ {
		name := archiveEntry(m, n)
		_, err := archive.Lstat(ctx, name+markerSuffix)
		if err == nil {
			continue // an earlier volume of this name
		}
		if !notExist(err) {
			return "", err
		}
		gone, err := p.moveAway(ctx, s, m, archive, name)
		if exist(err) {
			there, err := s.exists(ctx, m.Path)
			if err != nil || !there {
				return name, err // it was moved, and the answer was lost
			}
			continue
		}
		if err != nil || !gone {
			return name, err
		}
		// Perhaps it was moved before a crash, and lacks its marker yet.
		_, err = archive.Lstat(ctx, name)
		if notExist(err) {
			return "", nil
		}
		return name, err
	}
}

// moveAway moves the directory of m to the name in into, durably, or reports
// that it is gone already.
func (p *Pool) moveAway(ctx context.Context, s *session, m Marker, into Dir, name string) (gone bool, _ error) {
	err := s.rename(ctx, m.Path, into, name)
	if notExist(err) {
		p.log.Info("The directory of a deleted volume was gone already", "volume", m.Volume, "pool", p.options.Name, "path", m.Path)
		return true, nil
	}
	if err != nil {
		return false, kindError(err)
	}
	crashpoint.Reach(crashpoint.MovedToTrash)
	return false, nil
}

// rename moves the directory at path, durably.
func (s *session) rename(ctx context.Context, path string, into Dir, name string) error {
	above, leaf := splitPath(path)
	parent, err := openPath(ctx, s.root, above)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, err := parent.Open(ctx, leaf)
	if err != nil {
		return err
	}
	_ = dir.Close()
	// What stands there could change now, if its parent belongs to somebody
	// else. A rename moves it unseen: it follows nothing, and a mount point
	// refuses to be moved.
	if err := parent.Rename(ctx, leaf, into, name); err != nil {
		return err
	}
	return errors.Join(parent.Sync(ctx), into.Sync(ctx))
}

// keepMarker moves the marker to the name in into. What is done by the marker
// is done first.
func (p *Pool) keepMarker(ctx context.Context, s *session, m Marker, into Dir, name string) error {
	s.index.leave(m.Path, m.Volume)
	err := p.prune(ctx, s, m)
	if err == nil {
		err = s.volumes.Rename(ctx, m.Volume+markerSuffix, into, name)
	}
	if err == nil {
		err = into.Sync(ctx)
	}
	if err != nil {
		s.index.stay(m.Path, m.Volume)
		s.index.unsettled.add(p, m)
	} else {
		s.letGo(m)
	}
	return err
}

// forget removes the directories that were made above the volume's and are
// empty now, then the marker, if it is still there. In this order a crash
// leaves something that the next call can go by.
func (p *Pool) forget(ctx context.Context, s *session, m Marker) (err error) {
	s.index.leave(m.Path, m.Volume)
	defer func() {
		if err != nil {
			s.index.stay(m.Path, m.Volume)
			s.index.unsettled.add(p, m)
		}
	}()
	if err := p.prune(ctx, s, m); err != nil {
		return fmt.Errorf("remove the empty directories above volume %s: %w", m.Volume, err)
	}
	if err := s.volumes.Remove(ctx, m.Volume+markerSuffix); err != nil && !notExist(err) {
		return fmt.Errorf("remove the marker of volume %s: %w", m.Volume, err)
	}
	if err := s.volumes.Sync(ctx); err != nil {
		return fmt.Errorf("remove the marker of volume %s: %w", m.Volume, err)
	}
	crashpoint.Reach(crashpoint.MarkerRemoved)
	s.index.release(m.Path, m.Volume)
	s.index.unsettled.remove(p, m.Volume)
	s.letGo(m)
	return nil
}

// prune removes the directories that were made for m, from the deepest up, as
// long as they are empty and no other volume is about to be made in them. One
// that resists for a lasting reason is left.
func (p *Pool) prune(ctx context.Context, s *session, m Marker) error {
	for _, dir := range m.made() {
		if s.index.inUse(dir) {
			return nil
		}
		switch err := s.removeEmpty(ctx, dir); {
		case err == nil:
			s.index.removed(dir)
		case notEmpty(err):
			return nil
		case notDirectory(err), errors.Is(err, syscall.EBUSY), errors.Is(err, fs.ErrPermission):
			p.log.Error(err, "Left a directory that was made for a volume", "volume", m.Volume, "pool", p.options.Name)
			return nil
		default:
			return err
		}
	}
	return nil
}

// kindError adds ErrNotADirectory to an error that says so.
func kindError(err error) error {
	if notDirectory(err) {
		return fmt.Errorf("%w: %w", ErrNotADirectory, err)
	}
	return err
}

// trashID is how much of a name in the trash is random: 14 characters, 70 bits.
const trashID = maxName - maxVolumeName - 1

// trashEntry returns a new name in the trash for what belonged to volume.
func trashEntry(volume string) string {
	return rand.Text()[:trashID] + "-" + volume
}

// archiveEntry returns the nth choice for the name of an archived volume.
func archiveEntry(m Marker, n int) string {
	const longest = maxName - len(markerSuffix)
	suffix := "-" + m.Volume
	name := strings.TrimSuffix("-"+strings.ReplaceAll(m.Path, "/", "_"), suffix)
	if n > 1 {
		suffix += fmt.Sprintf("-%d", n)
	}
	if most := max(0, longest-len(suffix)); len(name) > most {
		for most > 0 && !utf8.RuneStart(name[most]) {
			most--
		}
		name = name[:most]
	}
	return strings.TrimPrefix(name+suffix, "-")
}
