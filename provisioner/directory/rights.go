package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"k8s.io/utils/lru"
)

// permissions are the bits of a mode that say who may do what.
const permissions = 0o777

// giveRights gives the directory its owner, then its mode, whatever mkdir has
// made of them, as long as nobody can be using it. It looks once what has become
// of them: not every filesystem takes what it is told.
func (b *builder) giveRights(ctx context.Context, dir Dir) error {
	m := &b.marker
	free, attr := b.made || m.Unfinished, Attr{Mode: m.Mode}
	if !free || m.UID != nil || m.GID != nil {
		before, err := dir.Stat(ctx)
		if err != nil {
			return err
		}
		if !free {
			if free, err = neverUsed(ctx, dir, before); err != nil {
				return err
			}
		}
		if m.UID != nil && *m.UID != before.UID {
			attr.UID = m.UID
		}
		if m.GID != nil && *m.GID != before.GID {
			attr.GID = m.GID
		}
	}
	var refused error
	if free {
		if refused = dir.SetAttr(ctx, attr); refused != nil && !isRefusal(refused) {
			return fmt.Errorf("set mode and owner of volume %s: %w", m.Volume, refused)
		}
	}
	got, err := dir.Stat(ctx)
	if err != nil {
		return errors.Join(refused, err)
	}
	not := append(unlike(*m, got), b.above...)
	if refused != nil && len(not) > 0 {
		return fmt.Errorf("set mode and owner of volume %s: %w: it has %s; ask for what the filesystem gives, or have it allow the change", m.Volume, refused, strings.Join(not, ", "))
	}
	m.Rights = strings.Join(append(not, unlikeByList(dir, got)...), ", ")
	return dir.Sync(ctx) // an earlier attempt may have failed here
}

// plainParents are the directories in which the last volume's directory that was made
// had initialMode, and no more by an access list that it inherits. There that mode
// tells after a crash that a directory has not got its rights; no marker has to,
// which is half the writes of a Create.
type plainParents struct{ cache *lru.Cache }

// maxPlainParents bounds how many are known; the others cost a write more.
const maxPlainParents = 1024

func newPlainParents() plainParents { return plainParents{lru.New(maxPlainParents)} }

// has reports whether the mode of a new directory at path tells that it is unused.
func (p plainParents) has(path string) bool {
	parent, _ := splitPath(path)
	_, plain := p.cache.Get(parent)
	return plain
}

// learn notes whether a directory that was just made at path had initialMode.
func (p plainParents) learn(path string, plain bool) {
	parent, _ := splitPath(path)
	if plain {
		p.cache.Add(parent, nil)
	} else {
		p.cache.Remove(parent)
	}
}

// noteMode learns from a directory that this call has just made.
func (b *builder) noteMode(ctx context.Context, dir Dir) error {
	info, err := dir.Stat(ctx)
	if err != nil {
		return err
	}
	plain := info.Mode&permissions == initialMode
	b.plain.learn(b.marker.Path, plain)
	if plain {
		return nil
	}
	return b.begin(ctx)
}

// neverUsed reports whether a directory whose marker says nothing was left behind by
// a crash before it had its owner. From then on it may be in use, and kubelet may
// have changed owner and mode for a pod's fsGroup, or its owner has.
func neverUsed(ctx context.Context, dir Dir, info Info) (bool, error) {
	if info.Mode&permissions != initialMode {
		return false, nil
	}
	return isEmpty(ctx, dir)
}

// isRefusal reports whether err says that a filesystem does not let anybody, or
// Berth, change owners or modes.
func isRefusal(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL)
}

// unlike says what of got is not what the marker asks for.
func unlike(m Marker, got Info) []string {
	var not []string
	// A directory that has inherited the bit for its group lets nobody in by that.
	if mode := got.Mode &^ (setgid &^ m.Mode); mode != m.Mode {
		not = append(not, unlikeMode("mode", got.Mode, m.Mode))
	}
	if m.UID != nil && *m.UID != got.UID {
		not = append(not, fmt.Sprintf("user %d instead of %d", got.UID, *m.UID))
	}
	if m.GID != nil && *m.GID != got.GID {
		not = append(not, fmt.Sprintf("group %d instead of %d", got.GID, *m.GID))
	}
	return not
}

const setgid = 0o2000

func unlikeMode(what string, got, want uint32) string {
	text := fmt.Sprintf("%s %04o instead of %04o", what, got, want)
	if got&^want&permissions != 0 {
		text += " (wider)"
	}
	return text
}
