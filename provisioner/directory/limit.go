package directory

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-storage/berth/internal/crashpoint"
	"github.com/berth-storage/berth/provisioner"
)

// owner returns whom the project id of volume is held for.
func (s *session) owner(volume string) QuotaOwner {
	return QuotaOwner{Pool: s.identity.ID, Volume: volume}
}

// limits reports whether the volume of m has a limit to look after.
func (s *session) limits(m Marker) bool { return m.Project != 0 && s.quota != nil }

// chooseProject reserves a project id for a new volume, or notes in its marker
// why there is none. It fails when the class insists.
func (s *session) chooseProject(ctx context.Context, m *Marker) error {
	switch m.Quota {
	case QuotaAuto, QuotaRequired:
		return m.tolerate(s.reserveProject(ctx, m))
	case QuotaNone:
		m.Unenforced = UnenforcedByClass
	}
	return nil
}

// tolerate notes in the marker that the size is not enforced, if that is what
// err says and the volume's class can live with it.
func (m *Marker) tolerate(err error) error {
	reason, unsupported := quotaUnsupported(err)
	switch {
	case !unsupported:
		return err
	case m.Quota == QuotaRequired:
		return fmt.Errorf("volume %s: %w", m.Volume, provisioner.Infeasible(quotaField, string(m.Quota), "%s", reason))
	}
	m.Unenforced = reason
	return nil
}

func (s *session) reserveProject(ctx context.Context, m *Marker) (err error) {
	switch {
	case s.quota == nil:
		return errNoQuota
	case m.Adopted:
		return &QuotaUnsupportedError{Reason: "the directory was there before the volume, and a limit counts only what is made after it was set"}
	case m.SizeBytes <= 0:
		return &QuotaUnsupportedError{Reason: "the volume has no size"}
	}
	if err := s.quota.Check(ctx, s.root); err != nil {
		return err
	}
	m.Project, err = s.quota.Reserve(ctx, s.root, s.owner(m.Volume), 0)
	return err
}

// enforce gives the directory of a volume the project id and the limit that its
// marker names, and changes the marker when that can't be.
func (b *builder) enforce(ctx context.Context, dir Dir) error {
	if !b.limits(b.marker) {
		return nil
	}
	before := b.marker.Unenforced
	err := b.giveProject(ctx, dir)
	if err == nil {
		err = b.raise(ctx, dir, &b.marker)
	}
	if err = b.marker.tolerate(err); err != nil {
		return fmt.Errorf("limit the size of volume %s: %w", b.marker.Volume, err)
	}
	if b.marker.Unenforced == before {
		return nil
	}
	return writeMarker(ctx, b.volumes, b.marker)
}

// giveProject gives dir the project id of the marker. A directory that has
// content but not the id has lost it, perhaps in a backup; it stays as it is,
// since every file in it would need the id.
//
// A crash may have left a marker whose id was never used, and that another
// process has taken since: the marker is given another then.
func (b *builder) giveProject(ctx context.Context, dir Dir) error {
	id, err := b.quota.Project(ctx, dir)
	if err != nil || id == b.marker.Project {
		return err
	}
	if empty, err := isEmpty(ctx, dir); err != nil {
		return err
	} else if !empty {
		return lostProject(b.marker)
	}
	id, err = b.quota.Reserve(ctx, dir, b.owner(b.marker.Volume), b.marker.Project)
	if err != nil {
		return err
	}
	if id != b.marker.Project {
		b.marker.Project = id
		if err := writeMarker(ctx, b.volumes, b.marker); err != nil {
			return err
		}
	}
	if err := b.quota.SetProject(ctx, dir, id); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.ProjectSet)
	return nil
}

// raise sets the limit that goes with the marker's size.
func (s *session) raise(ctx context.Context, dir Dir, m *Marker) error {
	// A filesystem may take limits that it does not enforce.
	if err := s.quota.Check(ctx, s.root); err != nil {
		return err
	}
	if err := s.quota.Raise(ctx, dir, m.Project, m.SizeBytes); err != nil {
		return err
	}
	crashpoint.Reach(crashpoint.LimitRaised)
	m.Unenforced = ""
	return nil
}

// raiseAt is raise for a volume whose directory is not open, unless it has lost
// its id.
func (s *session) raiseAt(ctx context.Context, m *Marker) error {
	dir, err := s.openLimited(ctx, *m)
	if err != nil {
		return err
	}
	defer dir.Close()
	return s.raise(ctx, dir, m)
}

// checkLimit fails if raiseAt surely would.
func (s *session) checkLimit(ctx context.Context, m Marker) error {
	dir, err := s.openLimited(ctx, m)
	if err != nil {
		return err
	}
	return errors.Join(s.quota.Check(ctx, s.root), dir.Close())
}

// openLimited opens the directory of a volume that has an id, unless it has lost it.
func (s *session) openLimited(ctx context.Context, m Marker) (Dir, error) {
	dir, err := openPath(ctx, s.root, m.Path)
	if err != nil {
		return nil, kindError(err)
	}
	id, err := s.quota.Project(ctx, dir)
	if err == nil && id != m.Project {
		err = lostProject(m)
	}
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

func lostProject(m Marker) error {
	return &QuotaUnsupportedError{Reason: fmt.Sprintf("the directory has lost its project id %d", m.Project)}
}

// lift removes the limit of a volume whose directory is about to be moved or
// removed, as long as that carries the id that the marker names: another volume
// may have the id by now, if this one was never finished. Afterwards would be
// too late to tell, and after a crash nobody would.
func (p *Pool) lift(ctx context.Context, s *session, m Marker) error {
	if !s.limits(m) {
		return nil
	}
	dir, err := openPath(ctx, s.root, m.Path)
	if notExist(err) || notDirectory(err) {
		return nil // what follows will say so
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	id, err := s.quota.Project(ctx, dir)
	if err == nil && id == m.Project {
		err = s.quota.Lift(ctx, dir, id)
	}
	return p.lifted(m, err)
}

// lifted is what became of an attempt to remove a limit. A filesystem that has
// no limits any more keeps no volume from being deleted; should it have them
// again one day, the id counts as in use.
func (p *Pool) lifted(m Marker, err error) error {
	if _, unsupported := quotaUnsupported(err); unsupported {
		p.log.Info("Could not remove the limit of a volume, whose project id stays out of use", "volume", m.Volume, "pool", p.options.Name, "project", m.Project, "reason", err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the limit of volume %s: %w", m.Volume, err)
	}
	crashpoint.Reach(crashpoint.LimitLifted)
	return nil
}

// letGo ends the reservation of the id of a volume that has no marker any more.
func (s *session) letGo(m Marker) {
	if s.limits(m) {
		s.quota.Release(s.owner(m.Volume))
	}
}

// restore sets the limit of m that lift has removed.
func (s *session) restore(ctx context.Context, m Marker) error {
	if !s.limits(m) {
		return nil
	}
	return m.tolerate(s.raiseAt(ctx, &m))
}

// isEmpty reports whether the directory at path is, or whether there is none.
func (s *session) isEmpty(ctx context.Context, path string) (bool, error) {
	dir, err := openPath(ctx, s.root, path)
	if notExist(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return isEmpty(ctx, dir)
}

func isEmpty(ctx context.Context, dir Dir) (bool, error) {
	for _, err := range dir.ReadDir(ctx) {
		return false, err
	}
	return true, nil
}
