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
	m, err := readMarker(ctx, s.volumes, volume)
	if notExist(err) {
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

// Undo takes back a volume that nobody has used, whatever its OnDelete. A
// directory that was adopted is let go. A volume without a marker is no error.
func (p *Pool) Undo(ctx context.Context, volume string) error {
	return p.withMarker(ctx, volume, func(s *session, m Marker) error {
		if m.Adopted {
			return p.forget(ctx, s, m)
		}
		return p.trash(ctx, s, m)
	})
}

// Discard drops a volume as long as its directory is empty, or was adopted, in
// which case it stays; otherwise it fails with provisioner.ErrNotEmpty and
// changes nothing. A volume without a marker is no error.
func (p *Pool) Discard(ctx context.Context, volume string) error {
	return p.withMarker(ctx, volume, func(s *session, m Marker) error {
		if m.Adopted {
			return p.forget(ctx, s, m)
		}
		err := s.removeEmpty(ctx, m.Path)
		if notEmpty(err) {
			return fmt.Errorf("discard volume %s: %w", volume, provisioner.ErrNotEmpty)
		}
		if err != nil {
			return fmt.Errorf("discard volume %s: %w", volume, kindError(err))
		}
		return p.forget(ctx, s, m)
	})
}

// Lookup returns the marker of volume, or an error that wraps fs.ErrNotExist or
// ErrNotInitialised when there is none.
func (p *Pool) Lookup(ctx context.Context, volume string) (Marker, error) {
	s, leave, err := p.enterVolume(ctx, volume)
	if err != nil {
		return Marker{}, err
	}
	defer leave()
	return readMarker(ctx, s.volumes, volume)
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
	m, err := readMarker(ctx, s.volumes, volume)
	if notExist(err) {
		return nil
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
		return nil // the marker is all there is to remove
	}
	if s.index.ownerOf(expect.Path) == volume {
		s.index.release(expect.Path) // somebody removed the marker by hand
	}
	if s.index.check(expect.Path) != nil {
		return nil // other volumes are there by now, so this one is gone
	}
	above, leaf := splitPath(expect.Path)
	parent, err := openPath(ctx, s.root, above)
	if err == nil {
		_, err = parent.Lstat(ctx, leaf)
		parent.Close()
	}
	if notExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: no ownership marker: %w", volume, kindError(err))
	}
	return fmt.Errorf("delete volume %s: no ownership marker for %s, not touching it: %w", volume, shown(expect.Path), ErrNotOwned)
}

// checkOwner refuses to act on a marker whose path, by another marker, belongs
// to another volume. A marker that an administrator has restored meanwhile is
// taken into account.
func (p *Pool) checkOwner(s *session, m Marker) error {
	if s.index.ownerOf(m.Path) == "" {
		p.index(s.index, m)
	}
	if owner := s.index.ownerOf(m.Path); owner != m.Volume {
		return fmt.Errorf("volume %s: another marker claims %s: %w", m.Volume, shown(m.Path), ErrNotOwned)
	}
	return nil
}

// trash moves the directory of m to the trash and forgets the volume.
func (p *Pool) trash(ctx context.Context, s *session, m Marker) error {
	defer p.wakeUp() // also after a failure, which may come after the move
	return p.retire(ctx, s, m, trashName, func(_ Dir, move func(name string) error) error {
		return move(trashEntry(m.Volume))
	}, nil)
}

// archive moves the directory of m, then its marker, to the archive.
func (p *Pool) archive(ctx context.Context, s *session, m Marker) error {
	var name string
	return p.retire(ctx, s, m, archiveName,
		func(archive Dir, move func(name string) error) error {
			for n := 1; ; n++ {
				candidate := archiveEntry(m, n)
				if _, err := archive.Lstat(ctx, candidate+markerSuffix); err == nil {
					continue
				}
				err := move(candidate)
				if err == nil {
					name = candidate
				}
				if !exist(err) {
					return err
				}
			}
		},
		func(archive Dir) error {
			for n := 1; name == ""; n++ {
				// The directory was moved before a crash: it is the one that
				// has no marker beside it.
				candidate := archiveEntry(m, n)
				if _, err := archive.Lstat(ctx, candidate); err != nil {
					return err
				}
				if _, err := archive.Lstat(ctx, candidate+markerSuffix); notExist(err) {
					name = candidate
				}
			}
			return s.volumes.Rename(ctx, m.Volume+markerSuffix, archive, name+markerSuffix)
		})
}

// retire moves the directory of m into the directory target of .berth, by way
// of move, and forgets the volume. A directory that is gone already is fine.
// keep, if any, may take the marker away before it is removed.
func (p *Pool) retire(ctx context.Context, s *session, m Marker, target string, move func(into Dir, move func(name string) error) error, keep func(into Dir) error) error {
	into, err := s.admin.Open(ctx, target)
	if err != nil {
		return fmt.Errorf("open .berth/%s: %w", target, err)
	}
	defer into.Close()
	switch err := s.moveAway(ctx, m, into, move); {
	case notExist(err):
		p.log.Info("The directory of a deleted volume was gone already", "volume", m.Volume, "pool", p.options.Name, "path", m.Path)
	case err != nil:
		return fmt.Errorf("move volume %s to the %s: %w", m.Volume, target, kindError(err))
	default:
		crashpoint.Reach(crashpoint.MovedToTrash)
	}
	if keep != nil {
		if err := p.keepMarker(ctx, s, m, into, keep); err != nil {
			return fmt.Errorf("keep the marker of volume %s: %w", m.Volume, err)
		}
	}
	return p.forget(ctx, s, m)
}

// keepMarker lets keep take the marker away. What would be done by it is done
// first.
func (p *Pool) keepMarker(ctx context.Context, s *session, m Marker, into Dir, keep func(into Dir) error) error {
	s.index.leave(m.Path)
	err := p.prune(ctx, s, m)
	if err == nil {
		err = keep(into)
	}
	if notExist(err) {
		return nil // there is no directory beside which to keep it
	}
	if err == nil {
		err = into.Sync(ctx)
	}
	if err != nil {
		s.index.stay(m.Path)
	}
	return err
}

// moveAway moves the directory of m, durably.
func (s *session) moveAway(ctx context.Context, m Marker, into Dir, move func(Dir, func(string) error) error) error {
	above, leaf := splitPath(m.Path)
	parent, err := openPath(ctx, s.root, above)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, err := parent.Open(ctx, leaf)
	if err != nil {
		return err
	}
	dir.Close()
	// What stands there could change now, if its parent belongs to somebody
	// else. A rename moves it unseen: it follows nothing, and a mount point
	// refuses to be moved.
	if err := move(into, func(name string) error { return parent.Rename(ctx, leaf, into, name) }); err != nil {
		return err
	}
	return errors.Join(parent.Sync(ctx), into.Sync(ctx))
}

// forget removes the directories that were made above the volume's and are
// empty now, then the marker, if it is still there. In this order a crash
// leaves something that the next call can go by.
func (p *Pool) forget(ctx context.Context, s *session, m Marker) (err error) {
	s.index.leave(m.Path)
	defer func() {
		if err != nil {
			s.index.stay(m.Path)
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
	s.index.release(m.Path)
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
