package directory

import (
	"context"
	"fmt"
)

// others are the bits of a mode for those who are neither the owner nor in the
// group.
const others = 0o007

// lostAndFound is where fsck puts what it finds. It belongs to the filesystem.
const lostAndFound = "lost+found"

// closeBase keeps other users of the machine out of the base: what pods see of a
// volume is bound to its directory by root, and whoever gets as far as that
// directory by the base can run the setuid programs that a pod has put there. A
// base that holds anything but the pool's is left, since somebody may need to get
// at that. It never fails: a base that can't be closed is as good as before.
func (p *Pool) closeBase(ctx context.Context, root Dir, x *index) {
	if !p.options.CloseBase {
		return
	}
	log := p.log.WithValues("pool", p.options.Name)
	info, err := root.Stat(ctx)
	if err != nil {
		log.Error(err, "Could not see who may enter the base of the pool")
		return
	}
	if info.Mode&others == 0 {
		return
	}
	log = log.WithValues("mode", fmt.Sprintf("%04o", info.Mode))
	const left = "Left the base of the pool open to other users of the machine, who can reach the volumes and what pods put there: close it with chmod o-rwx"
	foreign, err := findForeign(ctx, root, "", x)
	if err != nil {
		log.Error(err, left)
		return
	}
	if foreign != "" {
		log.Info(left, "holds", foreign)
		return
	}
	err = root.SetAttr(ctx, Attr{Mode: info.Mode &^ others})
	if err == nil {
		err = root.Sync(ctx)
	}
	if err == nil {
		info, err = root.Stat(ctx)
	}
	switch {
	case err != nil:
		log.Error(err, left)
	case info.Mode&others != 0:
		log.Info(left, "reason", "the filesystem has taken the change and has not made it")
	default:
		log.Info("Closed the base of the pool to other users of the machine")
	}
}

// findForeign returns a name below dir, which is the directory at path, that is
// neither a volume nor leads to one, and is not Berth's own; "" when there is
// none.
func findForeign(ctx context.Context, dir Dir, path string, x *index) (string, error) {
	for e, err := range dir.ReadDir(ctx) {
		if err != nil {
			return "", err
		}
		at := e.Name
		if path != "" {
			at = path + "/" + e.Name
		}
		switch {
		case at == adminName, at == lostAndFound, x.ownerOf(at) != "":
			continue
		case !x.inUse(at):
			return at, nil
		}
		if foreign, err := findForeignIn(ctx, dir, e.Name, at, x); err != nil || foreign != "" {
			return foreign, err
		}
	}
	return "", nil
}

func findForeignIn(ctx context.Context, dir Dir, name, at string, x *index) (string, error) {
	child, err := dir.Open(ctx, name)
	if notDirectory(err) {
		return at, nil
	}
	if err != nil {
		return "", err
	}
	defer child.Close()
	return findForeign(ctx, child, at, x)
}
