package directory

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The names in .berth.
const (
	identityName = "pool.json"
	lockName     = "lock"
	volumesName  = "volumes"
	trashName    = "trash"
	archiveName  = "archive"
	// initialisingName is there while the directories are made, and no longer than
	// until pool.json is.
	initialisingName = TempPrefix + "initialising"
)

const (
	identityVersion = 1
	maxIdentity     = 4 << 10
	// adminMode is the mode of .berth, and of the directories in it.
	adminMode = 0o700
)

// identity is what pool.json holds.
type identity struct {
	Version int    `json:"version"`
	Pool    string `json:"pool"`
	Driver  string `json:"driver"`
	ID      string `json:"id"`
	// Cluster is the id of the Kubernetes cluster that uses the pool, when its
	// driver says so.
	Cluster string    `json:"cluster,omitempty"`
	Created time.Time `json:"created"`
}

// openAdmin opens .berth, or fails with ErrNotInitialised when there is none.
func openAdmin(ctx context.Context, root Dir) (Dir, error) {
	admin, err := root.Open(ctx, adminName)
	if notExist(err) {
		return nil, fmt.Errorf("the base is %w: it has no directory .berth; if it had one, its disk is not mounted", ErrNotInitialised)
	}
	if err != nil {
		return nil, fmt.Errorf("open .berth: %w", err)
	}
	return admin, nil
}

// makeAdmin begins to initialise a base. The package comment says which.
func (p *Pool) makeAdmin(ctx context.Context, root Dir) (Dir, error) {
	for e, err := range root.ReadDir(ctx) {
		if err != nil {
			return nil, fmt.Errorf("read the base: %w", err)
		}
		if e.Name != lostAndFound && e.Name != adminName {
			return nil, fmt.Errorf("the base is %w, and is not empty: if it is the right directory, make an empty directory .berth in it; what is there stays as it is", ErrNotInitialised)
		}
	}
	if p.options.RefuseInitialise != nil {
		if err := p.options.RefuseInitialise(ctx); err != nil {
			return nil, fmt.Errorf("the base is empty and %w: %w", ErrNotInitialised, err)
		}
	}
	if err := root.Mkdir(ctx, adminName, adminMode); err != nil && !exist(err) {
		return nil, fmt.Errorf("make .berth: %w", err)
	}
	if err := root.Sync(ctx); err != nil {
		return nil, err
	}
	return openAdmin(ctx, root)
}

// private sees to it that nobody but the owner gets into .berth, also when an
// administrator made it. A filesystem that takes the change and does not make it
// can't keep anybody out.
func (p *Pool) private(ctx context.Context, admin Dir) error {
	info, err := admin.Stat(ctx)
	if err != nil {
		return err
	}
	if info.Mode&permissions == adminMode {
		return nil
	}
	if err := admin.SetAttr(ctx, Attr{Mode: adminMode}); err != nil {
		return fmt.Errorf("close .berth, which has mode %04o and owner %d, to others, or make it so that it has mode %04o: %w", info.Mode, info.UID, adminMode, err)
	}
	if info, err = admin.Stat(ctx); err != nil {
		return err
	}
	if info.Mode&permissions != adminMode {
		p.log.Info("The filesystem does not let .berth be closed to others, who can change what it says of whose the directories are",
			"pool", p.options.Name, "mode", fmt.Sprintf("%04o", info.Mode))
	}
	return nil
}

// identify returns the identity of the pool, which it gives it when initialise
// is set and nothing says that it had one.
func (p *Pool) identify(ctx context.Context, admin Dir, initialise bool) (identity, error) {
	cluster := ""
	if p.options.Cluster != nil {
		var err error
		if cluster, err = p.options.Cluster(ctx); err != nil {
			return identity{}, fmt.Errorf("find out which cluster this is: %w", err)
		}
	}
	known, err := readIdentity(ctx, admin)
	if notExist(err) {
		if known, err = p.initialise(ctx, admin, cluster, initialise); err != nil {
			return identity{}, err
		}
	}
	if err != nil {
		return identity{}, err
	}
	if known.Pool != p.options.Name || known.Driver != p.options.Driver {
		return identity{}, fmt.Errorf("%w: it says it is pool %s of %s, not %s of %s: is another disk mounted here? After renaming a pool, edit .berth/pool.json",
			ErrWrongPool, shown(known.Pool), shown(known.Driver), p.options.Name, p.options.Driver)
	}
	volumes, err := openVolumes(ctx, admin)
	if err != nil {
		return identity{}, err
	}
	_ = volumes.Close()
	if known, err = p.claimForCluster(ctx, admin, known, cluster); err != nil {
		return identity{}, err
	}
	if err := makeKeeps(ctx, admin, trashName, archiveName); err != nil {
		return identity{}, err
	}
	if err := admin.Remove(ctx, initialisingName); err != nil && !notExist(err) {
		p.log.Error(err, "Could not remove what an initialisation has left behind", "pool", p.options.Name)
	}
	return known, nil
}

// makeKeeps makes those of the directories in .berth that are missing.
func makeKeeps(ctx context.Context, admin Dir, names ...string) error {
	for _, name := range names {
		if err := admin.Mkdir(ctx, name, adminMode); err != nil && !exist(err) {
			return fmt.Errorf("make .berth/%s: %w", name, err)
		}
	}
	return admin.Sync(ctx)
}

// openVolumes opens the directory of the markers. It is made before pool.json is,
// so a pool that lacks it has lost it, and with it who owns what.
func openVolumes(ctx context.Context, admin Dir) (Dir, error) {
	volumes, err := admin.Open(ctx, volumesName)
	if notExist(err) {
		return nil, fmt.Errorf("%w: .berth/pool.json is there, but .berth/volumes, which says whose the directories are, is gone: restore it from a backup, or from lost+found; if this pool never had a volume, make it, with mode 0700", ErrWrongPool)
	}
	if err != nil {
		return nil, fmt.Errorf("open the markers: %w", err)
	}
	return volumes, nil
}

// claimForCluster writes cluster into a pool that belongs to none, and refuses
// one that belongs to another.
func (p *Pool) claimForCluster(ctx context.Context, admin Dir, known identity, cluster string) (identity, error) {
	switch {
	case cluster == "" || known.Cluster == cluster:
		return known, nil
	case known.Cluster != "":
		return identity{}, fmt.Errorf("%w: it belongs to the cluster %s, this one is %s: give each cluster a directory of its own; if that cluster is gone for good, remove the line \"cluster\" from .berth/pool.json",
			ErrWrongPool, shown(known.Cluster), cluster)
	}
	known.Cluster = cluster
	return known, writeIdentity(ctx, admin, known)
}

func writeIdentity(ctx context.Context, admin Dir, id identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode pool.json: %w", err)
	}
	if err := admin.WriteFile(ctx, identityName, append(data, '\n')); err != nil {
		return fmt.Errorf("write .berth/pool.json: %w", err)
	}
	return nil
}

// initialise makes the directories in a .berth that nothing was done with yet, and
// then, as a proof that they were there, pool.json.
func (p *Pool) initialise(ctx context.Context, admin Dir, cluster string, allowed bool) (identity, error) {
	if err := neverInitialised(ctx, admin); err != nil {
		return identity{}, err
	}
	if !allowed {
		return identity{}, fmt.Errorf("the base is %w: .berth is empty", ErrNotInitialised)
	}
	if err := admin.WriteFile(ctx, initialisingName, nil); err != nil {
		return identity{}, fmt.Errorf("write .berth/%s: %w", initialisingName, err)
	}
	if err := makeKeeps(ctx, admin, volumesName, trashName, archiveName); err != nil {
		return identity{}, err
	}
	fresh := identity{
		Version: identityVersion,
		Pool:    p.options.Name,
		Driver:  p.options.Driver,
		ID:      rand.Text(),
		Cluster: cluster,
		Created: time.Now().UTC(),
	}
	if err := writeIdentity(ctx, admin, fresh); err != nil {
		return identity{}, err
	}
	p.log.Info("Initialised pool", "pool", p.options.Name, "id", fresh.ID)
	return fresh, nil
}

// neverInitialised fails with ErrWrongPool when .berth holds more than an
// initialisation leaves that was cut off.
func neverInitialised(ctx context.Context, admin Dir) error {
	var held []string
	begun := false
	for e, err := range admin.ReadDir(ctx) {
		if err != nil {
			return fmt.Errorf("read .berth: %w", err)
		}
		if e.Name != lockName && !strings.HasPrefix(e.Name, TempPrefix) {
			held = append(held, e.Name)
		}
		begun = begun || e.Name == initialisingName
	}
	for _, name := range held {
		made := name == volumesName || name == trashName || name == archiveName
		if begun && made {
			empty, err := isEmptyAt(ctx, admin, name)
			if err != nil {
				return fmt.Errorf("look into .berth/%s: %w", name, err)
			}
			if empty {
				continue
			}
		}
		return fmt.Errorf("%w: .berth holds %s, but pool.json is gone: restore it", ErrWrongPool, shown(name))
	}
	return nil
}

func isEmptyAt(ctx context.Context, parent Dir, name string) (bool, error) {
	dir, err := parent.Open(ctx, name)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return isEmpty(ctx, dir)
}

// checkIdentity fails with ErrWrongPool unless admin belongs to the pool it did.
func checkIdentity(ctx context.Context, admin Dir, before identity) error {
	known, err := readIdentity(ctx, admin)
	if notExist(err) {
		return fmt.Errorf("%w: .berth/pool.json is gone, is the disk mounted?", ErrWrongPool)
	}
	if err != nil {
		return err
	}
	if known.ID != before.ID {
		return fmt.Errorf("%w: its id is %s, it was %s: another disk is mounted here", ErrWrongPool, shown(known.ID), before.ID)
	}
	if known.Cluster != before.Cluster {
		return fmt.Errorf("%w: it belongs to the cluster %s, it was %s", ErrWrongPool, shown(known.Cluster), shown(before.Cluster))
	}
	return nil
}

func readIdentity(ctx context.Context, admin Dir) (identity, error) {
	data, err := admin.ReadFile(ctx, identityName, maxIdentity)
	if err != nil {
		return identity{}, fmt.Errorf("read .berth/pool.json: %w", err)
	}
	var known identity
	if err := json.Unmarshal(data, &known); err != nil {
		return identity{}, fmt.Errorf("%w: .berth/pool.json: %w: restore it", ErrWrongPool, err)
	}
	if known.Version != identityVersion || known.ID == "" {
		return identity{}, errors.Join(ErrWrongPool, fmt.Errorf(".berth/pool.json has version %d, known is %d", known.Version, identityVersion))
	}
	return known, nil
}
