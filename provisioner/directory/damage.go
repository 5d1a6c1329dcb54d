package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"
)

// damageErrnos are what a filesystem answers for a file whose own blocks, inode
// or rights are not good, on any system; damageErrnosHere those of this one.
var damageErrnos = []syscall.Errno{syscall.EIO, syscall.EBADMSG, syscall.ESTALE, syscall.EACCES, syscall.EPERM, syscall.ENXIO, syscall.EOVERFLOW, syscall.EFBIG, syscall.EILSEQ}

// isDamage reports whether err says that a marker is there and no good, rather
// than that it could not be read for now.
func isDamage(err error) bool {
	return errors.Is(err, ErrDamagedMarker) || errors.Is(err, ErrTooLarge) || notRegular(err)
}

// unreadable reports whether err is what a filesystem answers for a file that it
// can't read. It says nothing about whether others could be read, and is not that
// there was no answer.
func unreadable(err error) bool {
	if outcomeUnknown(err) || errors.Is(err, ErrNoAnswer) {
		return false
	}
	is := func(errno syscall.Errno) bool { return errors.Is(err, errno) }
	return slices.ContainsFunc(damageErrnos, is) || slices.ContainsFunc(damageErrnosHere, is)
}

// stillAnswers looks whether what can't read a marker can read what is beside it.
// If not, it is not the marker that is damaged.
func stillAnswers(ctx context.Context, admin, volumes Dir) error {
	if _, err := volumes.Stat(ctx); err != nil {
		return fmt.Errorf("look at the directory of the markers: %w", err)
	}
	_, err := readIdentity(ctx, admin)
	return err
}

// blame decides what it means that markers can't be read, of which good others
// could: that they are damaged, or, by an error, that their directory is. One
// alone, beside a directory that answers, is damaged.
func blame(good int, unread map[string]error) error {
	if good > 0 || len(unread) < 2 {
		return nil
	}
	some := slices.Sorted(maps.Keys(unread))[0]
	return fmt.Errorf("none of the %d markers can be read: %w", len(unread), unread[some])
}

// A disk may take half a minute to say that it can't read a marker, which must not
// be what everybody waits for who makes a volume.
const (
	// slowRead is how long reading a damaged marker takes that then has to rest,
	// restFactor times as long, and longestRest at most.
	slowRead    = time.Second
	restFactor  = 10
	longestRest = 5 * time.Minute
)

// damage is a marker that can't be trusted.
type damage struct {
	err error
	// readable says that it can be read, but names another volume's directory.
	readable bool
	// pathKnown says that the volume's directory is known from before.
	pathKnown bool
	// again is when to read it next.
	again time.Time
}

// rest returns how long a marker that took so long to read is left alone.
func rest(took time.Duration) time.Duration {
	if took < slowRead {
		return 0
	}
	return min(restFactor*took, longestRest)
}

// setDamaged notes that the marker of volume can't be trusted, and reports whether
// that is news.
func (x *index) setDamaged(volume string, d damage) (news bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, known := x.damaged[volume]
	_, d.pathKnown = x.path[volume]
	x.damaged[volume] = d
	return !known
}

// mended takes that back.
func (x *index) mended(volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.damaged, volume)
}

// read notes that the marker of volume could be read, which is all that was wrong
// with it if the volume's directory is known.
func (x *index) read(volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d, damaged := x.damaged[volume]; damaged && d.pathKnown && !d.readable {
		delete(x.damaged, volume)
	}
}

// unreadableMarker returns why the marker of volume can't be read, as it was found
// before, or nil.
func (x *index) unreadableMarker(volume string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d := x.damaged[volume]; !d.readable {
		return d.err
	}
	return nil
}

// unreadableMarkers returns that for all volumes, in the order of their names.
func (x *index) unreadableMarkers() []error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []error
	for _, volume := range slices.Sorted(maps.Keys(x.damaged)) {
		if d := x.damaged[volume]; !d.readable {
			all = append(all, d.err)
		}
	}
	return all
}

// damages counts the volumes whose markers can't be trusted.
func (x *index) damages() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.damaged)
}

// unknownDirectories returns the volumes whose directories nobody knows, in the order
// of their names.
func (x *index) unknownDirectories() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var volumes []string
	for volume, d := range x.damaged {
		if !d.pathKnown {
			volumes = append(volumes, volume)
		}
	}
	slices.Sort(volumes)
	return volumes
}

// maxNamed is how many damaged markers an error names: an event has room for so many.
const maxNamed = 2

// damagedMarkers is an ErrDamagedMarker that names the markers of volumes, and says
// what to do about them.
func damagedMarkers(volumes []string) error {
	var files []string
	for _, volume := range volumes[:min(len(volumes), maxNamed)] {
		files = append(files, markerFile(volume))
	}
	text := strings.Join(files, ", ")
	if more := len(volumes) - len(files); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%w: %s in the pool: repair it, or remove it if there is no PersistentVolume of that name", ErrDamagedMarker, text)
}

// takeDamaged returns the volumes whose markers are to be read again, which
// nobody else is told of before they have rested once more.
func (x *index) takeDamaged() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var due []string
	now := time.Now()
	for volume, d := range x.damaged {
		if now.Before(d.again) {
			continue
		}
		d.again = now.Add(longestRest)
		x.damaged[volume] = d
		due = append(due, volume)
	}
	return due
}

// putBack makes the markers of volumes due again.
func (x *index) putBack(volumes []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, volume := range volumes {
		if d, ok := x.damaged[volume]; ok {
			d.again = time.Time{}
			x.damaged[volume] = d
		}
	}
}

// noteDamage notes that the marker of volume is damaged, says so once, and returns
// err as an ErrDamagedMarker.
func (p *Pool) noteDamage(x *index, volume string, err error, took time.Duration) error {
	if !errors.Is(err, ErrDamagedMarker) {
		err = fmt.Errorf("%w: %w", ErrDamagedMarker, err)
	}
	if x.setDamaged(volume, damage{err: err, again: time.Now().Add(rest(took))}) {
		p.log.Error(err, "Found a damaged marker, repair or remove it", "volume", volume, "pool", p.options.Name)
	}
	return err
}

// recheckDamaged looks whether an administrator has repaired or removed the
// markers that were damaged, or the disk can read them again, and returns the
// volumes whose directories nobody knows.
func (p *Pool) recheckDamaged(ctx context.Context, s *session) ([]string, error) {
	due := s.index.takeDamaged()
	for i, volume := range due {
		start := time.Now()
		m, err := readMarker(ctx, s.volumes, volume)
		switch {
		case err == nil:
			p.index(s.index, s.identity.ID, m)
		case notExist(err):
			listed, failed := s.lists(ctx, volume)
			if failed != nil {
				s.index.putBack(due[i:])
				return nil, failed
			}
			if listed {
				_ = p.noteDamage(s.index, volume, err, time.Since(start))
			} else {
				s.index.mended(volume)
			}
		case isDamage(err), unreadable(err):
			_ = p.noteDamage(s.index, volume, err, time.Since(start))
		default:
			s.index.putBack(due[i:])
			return nil, err
		}
	}
	return s.index.unknownDirectories(), nil
}

// lists reports whether there is a marker of volume as far as the list of all says.
func (s *session) lists(ctx context.Context, volume string) (bool, error) {
	for e, err := range s.volumes.ReadDir(ctx) {
		if err != nil {
			return false, fmt.Errorf("list the markers: %w", err)
		}
		if e.Name == volume+markerSuffix {
			return true, nil
		}
	}
	return false, nil
}
