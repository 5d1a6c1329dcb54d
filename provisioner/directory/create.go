package directory

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-storage/berth/internal/crashpoint"
)

// Spec is what a new volume should be.
type Spec struct {
	// Volume is the name of the PersistentVolume, by which Create is idempotent.
	Volume   string
	Claim    types.NamespacedName
	ClaimUID types.UID
	Class    string
	// SizeBytes is recorded, and enforced as far as Quota asks for it and the
	// filesystem can: the marker says.
	SizeBytes int64
	Quota     QuotaMode
	// Path is where the directory goes, as Pattern.Expand returns it.
	Path     string
	OnDelete OnDelete
	// Adopt takes over the directory at Path, which has to be there and to belong
	// to no volume. None is made in its place: an empty directory would pass for
	// somebody's data.
	Adopt bool
	// Mode, UID and GID are given to the directory, unless it is adopted. An
	// owner that is nil is left as the filesystem made it, which is all that
	// can be had from an NFS export that squashes root.
	Mode     uint32
	UID, GID *uint32
}

const (
	// initialMode is the mode a directory has until it has its owner.
	initialMode = 0o700
	// parentMode is the mode of a directory made for a pattern.
	parentMode = 0o755
	// undoTimeout bounds what is done after a caller has given up.
	undoTimeout = 30 * time.Second
	// vanishingRetries bounds how often a directory may be pruned by the
	// deletion of another volume just before it is needed. Only deletions that
	// began before the path was reserved can do that.
	vanishingRetries = 100
)

// errVanished says that a parent directory was removed while it was walked.
var errVanished = errors.New("a parent directory was removed meanwhile")

// Create makes the volume that spec describes and returns its marker. A call
// repeated, after success, failure or a crash, finishes what the first began:
// the marker's path counts then, not that of spec.
//
// An error means that nothing was left behind, unless it is one that leaves the
// outcome open; in that case the marker stays for the next call, or for
// Discard.
func (p *Pool) Create(ctx context.Context, spec Spec) (Marker, error) {
	if err := spec.check(); err != nil {
		return Marker{}, err
	}
	unlock, err := p.volumes.lock(ctx, spec.Volume)
	if err != nil {
		return Marker{}, err
	}
	defer unlock()
	s, err := p.enter(ctx, true)
	if err != nil {
		return Marker{}, err
	}
	defer s.close()

	m, err := s.readMarker(ctx, spec.Volume)
	if notExist(err) {
		if err := p.settleMissing(ctx, s, spec.Volume); err != nil {
			return Marker{}, fmt.Errorf("create volume %s: %w", spec.Volume, err)
		}
		return p.createNew(ctx, s, spec)
	}
	if err != nil {
		return Marker{}, err
	}
	if m.ClaimUID != spec.ClaimUID {
		return Marker{}, fmt.Errorf("create volume %s: its marker is for a claim with another UID: %w", spec.Volume, ErrNotOwned)
	}
	if err := p.checkOwner(s, m); err != nil {
		return Marker{}, err
	}
	if spec.Adopt && !m.Adopted {
		return Marker{}, refuseMade(m)
	}
	if m, err = p.settleFound(ctx, s, m); err != nil {
		return Marker{}, fmt.Errorf("create volume %s: %w", m.Volume, err)
	}
	b := &builder{session: s, marker: m}
	err = b.build(ctx)
	p.addUnknown(s, b.marker, err)
	s.index.promise(b.marker)
	return b.marker, err
}

func (spec Spec) check() error {
	if err := checkVolume(spec.Volume); err != nil {
		return err
	}
	if spec.Quota != "" && !spec.Quota.Valid() {
		return fmt.Errorf("create volume %s: quota %q is invalid", spec.Volume, spec.Quota)
	}
	if spec.ClaimUID == "" || !spec.OnDelete.Valid() || spec.Mode > 0o7777 {
		return fmt.Errorf("create volume %s: claim UID %q, onDelete %q or mode %#o is invalid", spec.Volume, spec.ClaimUID, spec.OnDelete, spec.Mode)
	}
	if err := CheckPath(spec.Path); err != nil {
		return fmt.Errorf("create volume %s: %w", spec.Volume, err)
	}
	return nil
}

// createNew makes a volume that has no marker yet.
func (p *Pool) createNew(ctx context.Context, s *session, spec Spec) (Marker, error) {
	if err := p.reserve(ctx, s, spec); err != nil {
		return Marker{}, err
	}
	b := &builder{session: s, fresh: true, marker: Marker{
		Version:        markerVersion,
		Volume:         spec.Volume,
		ClaimNamespace: spec.Claim.Namespace,
		Claim:          spec.Claim.Name,
		ClaimUID:       spec.ClaimUID,
		Class:          spec.Class,
		SizeBytes:      spec.SizeBytes,
		Pool:           p.options.Name,
		Path:           spec.Path,
		OnDelete:       spec.OnDelete,
		Mode:           spec.Mode,
		UID:            spec.UID,
		GID:            spec.GID,
		Created:        time.Now().UTC(),
		Quota:          spec.Quota,
	}}
	s.index.promise(b.marker)
	parentsThere, err := p.survey(ctx, b, spec.Adopt)
	if err == nil {
		err = s.chooseProject(ctx, &b.marker)
	}
	if err != nil {
		s.index.release(spec.Path, spec.Volume)
		return Marker{}, err
	}
	s.index.setMade(b.marker)
	b.marker.Unfinished = !b.marker.Adopted && (!parentsThere || !s.plain.has(spec.Path))
	err = writeMarker(ctx, s.volumes, b.marker)
	if err == nil {
		crashpoint.Reach(crashpoint.MarkerWritten)
		err = b.build(ctx)
	}
	s.index.promise(b.marker)
	if err == nil {
		return b.marker, nil
	}
	if outcomeUnknown(err) {
		p.settle(ctx, b)
		return Marker{}, err
	}
	return Marker{}, errors.Join(err, p.takeBack(ctx, b))
}

// survey looks at what is there before anything is written, refuses what can't
// become the volume, and completes the marker. It reports whether the directory
// above the volume's is there.
func (p *Pool) survey(ctx context.Context, b *builder, adopt bool) (parentsThere bool, err error) {
	m := &b.marker
	damaged, err := p.recheckDamaged(ctx, b.session)
	if err != nil {
		return false, err
	}
	dir := sharedDir(b.root)
	defer func() { _ = dir.Close() }()
	above := ancestors(m.Path)
	there := 0 // how many of above exist
	for _, path := range above {
		_, name := splitPath(path)
		child, err := dir.Open(ctx, name)
		if notExist(err) {
			break
		}
		if err != nil {
			return false, refuseKind(err, m.Path, path)
		}
		_ = dir.Close()
		dir = child
		there++
		if len(damaged) > 0 && !b.index.isAncestor(path, m.Path) {
			return false, fmt.Errorf("create volume %s: %s may lie in a volume whose marker can't be trusted: %w", m.Volume, shown(path), damagedMarkers(damaged))
		}
	}
	for i := len(above) - 1; i >= 0 && (i >= there || b.index.isMade(above[i])); i-- {
		m.ParentsMade++
	}
	if there < len(above) {
		return false, missing(adopt, m.Path)
	}
	_, leaf := splitPath(m.Path)
	child, err := dir.Open(ctx, leaf)
	if notExist(err) {
		return true, missing(adopt, m.Path)
	}
	if err != nil {
		return true, refuseKind(err, m.Path, m.Path)
	}
	defer child.Close()
	if !adopt {
		return true, refuseExisting(m.Path)
	}
	if err := refusePool(ctx, child, m.Path); err != nil {
		return true, err
	}
	if len(damaged) > 0 {
		return true, fmt.Errorf("create volume %s: can't adopt %s, which may belong to a volume whose marker can't be trusted: %w", m.Volume, shown(m.Path), damagedMarkers(damaged))
	}
	m.Adopted = true
	return true, nil
}

func refuseExisting(path string) error {
	return refuse(ErrExists, path, "the directory exists and belongs to no volume; choose another pathPattern, or set the parameter existing to adopt to take it over")
}

// refuseKind turns an error of Open at the directory at into a refusal of path,
// if it says what stands there rather than that something failed.
func refuseKind(err error, path, at string) error {
	if notDirectory(err) {
		return refuse(ErrNotADirectory, path, "%s is a file, a symbolic link or a mount point", shown(at))
	}
	if errors.Is(err, syscall.ENAMETOOLONG) {
		return refuse(ErrNotADirectory, path, "the filesystem does not take so long a name")
	}
	return err
}

// builder makes the directory that a marker names.
type builder struct {
	*session
	marker Marker
	// fresh says that this call wrote the marker: whatever stands at its path
	// by now is somebody else's.
	fresh bool
	// made says that this call made the directory.
	made bool
	// above is what differs in the rights of the directories that this call made
	// above the volume's.
	above []string
}

// build makes what is missing.
func (b *builder) build(ctx context.Context) error {
	for range vanishingRetries {
		err := b.buildOnce(ctx)
		if !errors.Is(err, errVanished) {
			return err
		}
	}
	return fmt.Errorf("create volume %s: %w", b.marker.Volume, errVanished)
}

func (b *builder) buildOnce(ctx context.Context) error {
	parent, err := b.openParent(ctx)
	if err != nil {
		return err
	}
	defer parent.Close()
	_, leaf := splitPath(b.marker.Path)
	if !b.marker.Adopted {
		if err := b.makeLeaf(ctx, parent, leaf); err != nil {
			return err
		}
	}
	dir, err := parent.Open(ctx, leaf)
	switch {
	case notExist(err) && !b.marker.Adopted:
		return errVanished
	case notExist(err):
		return refuseMissing(b.marker.Path)
	case err != nil:
		return fmt.Errorf("create volume %s: %w", b.marker.Volume, refuseKind(err, b.marker.Path, b.marker.Path))
	}
	defer dir.Close()
	if b.made {
		if err := b.noteMode(ctx, dir); err != nil {
			return err
		}
	}
	if !b.marker.Adopted {
		// The limit first: with its owner the directory is in use.
		if err := b.enforce(ctx, dir); err != nil {
			return err
		}
		if err := b.giveRights(ctx, dir); err != nil {
			return err
		}
	}
	if err := parent.Sync(ctx); err != nil {
		return err
	}
	return b.finish(ctx)
}

// begin notes in the marker that the volume is being made, unless it is noted.
func (b *builder) begin(ctx context.Context) error {
	if b.marker.Unfinished {
		return nil
	}
	b.marker.Unfinished = true
	return writeMarker(ctx, b.volumes, b.marker)
}

// finish is the opposite of begin. From here on a pod may use the directory.
func (b *builder) finish(ctx context.Context) error {
	if !b.marker.Unfinished {
		return nil
	}
	finished := b.marker
	finished.Unfinished = false
	if err := writeMarker(ctx, b.volumes, finished); err != nil {
		return err
	}
	b.marker = finished
	return nil
}

// makeLeaf makes the volume's directory, unless it is there and this call may
// take it for the volume's.
func (b *builder) makeLeaf(ctx context.Context, parent Dir, leaf string) error {
	if !b.marker.Unfinished && !b.plain.has(b.marker.Path) {
		_, err := parent.Lstat(ctx, leaf)
		if notExist(err) {
			err = b.begin(ctx)
		} else if err == nil && !b.fresh {
			return nil
		}
		if err != nil {
			return fmt.Errorf("make the directory of volume %s: %w", b.marker.Volume, err)
		}
	}
	err := parent.Mkdir(ctx, leaf, initialMode)
	switch {
	case err == nil:
		b.made = true
		crashpoint.Reach(crashpoint.DirectoryCreated)
		return nil
	case notExist(err):
		return errVanished
	case exist(err) && b.fresh && !b.made:
		return refuseExisting(b.marker.Path)
	case exist(err):
		return nil
	default:
		return fmt.Errorf("make the directory of volume %s: %w", b.marker.Volume, refuseKind(err, b.marker.Path, b.marker.Path))
	}
}

// settle finds out whether a createNew whose outcome is unknown has left a
// marker. If not, the path is free again.
func (p *Pool) settle(ctx context.Context, b *builder) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	b.index.unsettled.add(p, b.marker)
	if _, err := b.volumes.Lstat(ctx, b.marker.Volume+markerSuffix); notExist(err) {
		_ = p.forget(ctx, b.session, b.marker) // if it can't, it stays noted
	}
}

// takeBack undoes a createNew that failed: it removes what this call made, as
// far as it is still empty, and nothing else.
func (p *Pool) takeBack(ctx context.Context, b *builder) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if b.made {
		if err := p.lift(ctx, b.session, b.marker); err != nil {
			return fmt.Errorf("take back volume %s: %w", b.marker.Volume, err)
		}
		if err := b.removeEmpty(ctx, b.marker.Path); err != nil {
			// The marker keeps track of it.
			p.addUnknown(b.session, b.marker, err)
			return fmt.Errorf("take back volume %s: %w", b.marker.Volume, err)
		}
	}
	return p.forget(ctx, b.session, b.marker)
}

// removeEmpty removes the directory at path; that there is none is fine.
func (s *session) removeEmpty(ctx context.Context, path string) error {
	above, leaf := splitPath(path)
	parent, err := openPath(ctx, s.root, above)
	if notExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := parent.Rmdir(ctx, leaf); err != nil && !notExist(err) {
		return err
	}
	return nil
}

// outcomeUnknown reports whether err leaves open what a call has done.
func outcomeUnknown(err error) bool {
	return errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
